-- What must hold on any machine, each claim a query over the one table `edges` (see edges.py).
--
-- By hand, beside a run's edges.parquet:
--   duckdb -c "CREATE TABLE edges AS FROM 'edges.parquet'" -c ".read claims.sql" -c "FROM must_hold"
--
-- Each claim says of every edge, span or message whether it was `judged`, speaks against the claim (`wrong`), or could
-- not be judged (`undecided`). Nothing is pooled and nothing has a tolerance: where an instant is known only as lying
-- between two readings, the whole stretch is allowed for, and what then remains open is undecided.

-- The three rules of what an edge is. `stamp-after-send` is the late stamp that many programs make; it counts towards
-- no
-- rate and is there to see who is blamed. separation: the true gap, by the host's raw clock alone, widened by the 500
-- ppm
-- by which a kernel may slew the host's wall clock against it. skew: what the clocks take away from the true gap.
CREATE OR REPLACE VIEW ruled AS
WITH three AS (
    SELECT *, 'span-start' AS rule, receiver_start_ns - sender_start_ns AS gap_ns, verdict_span_start AS verdict,
        receiver_start_raw_lo_ns - sender_start_raw_hi_ns AS near_ns,
        receiver_start_raw_hi_ns - sender_start_raw_lo_ns AS far_ns,
        receiver_start_truth_lo_ns - sender_start_truth_hi_ns AS skew_lo_ns,
        receiver_start_truth_hi_ns - sender_start_truth_lo_ns AS skew_hi_ns
    FROM edges
    UNION ALL BY NAME
    SELECT *, 'send-receive' AS rule, receiver_received_ns - sender_sent_ns AS gap_ns, verdict_send_receive AS verdict,
        receiver_start_raw_lo_ns - sender_sent_raw_hi_ns AS near_ns,
        receiver_start_raw_hi_ns - sender_sent_raw_lo_ns AS far_ns,
        receiver_start_truth_lo_ns - sender_sent_truth_hi_ns AS skew_lo_ns,
        receiver_start_truth_hi_ns - sender_sent_truth_lo_ns AS skew_hi_ns
    FROM edges
    UNION ALL BY NAME
    SELECT *, 'stamp-after-send' AS rule, receiver_received_ns - sender_noted_ns AS gap_ns,
        verdict_stamp_after_send AS verdict,
        NULL::BIGINT AS near_ns, NULL::BIGINT AS far_ns,
        receiver_start_truth_lo_ns - sender_sent_truth_hi_ns AS skew_lo_ns,
        receiver_start_truth_hi_ns - sender_sent_truth_lo_ns AS skew_hi_ns
    FROM edges
)
SELECT *,
    near_ns - CAST(ceil(abs(near_ns) * 0.0005) AS BIGINT) AS separation_lo_ns,
    far_ns + CAST(ceil(abs(far_ns) * 0.0005) AS BIGINT) AS separation_hi_ns,
    gap_ns + skew_lo_ns AS true_lo_ns,
    gap_ns + skew_hi_ns AS true_hi_ns,
    sender_uncertainty_ns + receiver_uncertainty_ns AS uncertainty_ns,
    -- One tag speaks for a whole span: where its clock was stepped inside it, the tag is that of the start.
    coalesce(abs(sender_sent_truth_lo_ns - sender_start_truth_lo_ns) < 100000, true) AS steady
FROM three
WHERE gap_ns IS NOT NULL;

-- Each span once in each mode: those of the stages that send, and the consumer's.
CREATE OR REPLACE VIEW spans AS
SELECT transport, cell, block, purpose, round, skew_ns, message, mode, sender AS node,
    sender_made AS made, sender_copies AS copies,
    sender_start_ns AS start_ns, sender_end_ns AS end_ns, sender_sent_ns AS sent_ns, sender_noted_ns AS noted_ns,
    NULL::BIGINT AS received_ns,
    sender_start_truth_lo_ns AS truth_lo_ns, sender_start_truth_hi_ns AS truth_hi_ns,
    sender_offset_ns AS offset_ns, sender_uncertainty_ns AS uncertainty_ns
FROM edges
UNION ALL
SELECT transport, cell, block, purpose, round, skew_ns, message, mode, receiver,
    receiver_made, receiver_copies, receiver_start_ns, receiver_end_ns, NULL, NULL, receiver_received_ns,
    receiver_start_truth_lo_ns, receiver_start_truth_hi_ns, receiver_offset_ns, receiver_uncertainty_ns
FROM edges WHERE receiver = 'consumer';

-- A span as its backend has it, beside the same span by the exporter's direct way.
CREATE OR REPLACE VIEW twins AS
SELECT changed.*, raw.start_ns AS raw_start_ns, raw.end_ns AS raw_end_ns, raw.sent_ns AS raw_sent_ns,
    raw.noted_ns AS raw_noted_ns, raw.received_ns AS raw_received_ns
FROM spans AS changed JOIN spans AS raw USING (transport, block, message, node)
WHERE raw.mode = 'off' AND changed.mode <> 'off' AND raw.copies > 0 AND changed.copies > 0;

CREATE OR REPLACE VIEW flips AS
SELECT transport, cell, separation_hi_ns < skew_lo_ns OR separation_lo_ns >= skew_hi_ns AS judged,
    judged AND (gap_ns < 0) <> (separation_hi_ns < skew_lo_ns) AS wrong
FROM ruled
WHERE mode = (SELECT min(mode) FROM edges WHERE mode <> 'rewrite') AND rule <> 'stamp-after-send'
    AND separation_lo_ns IS NOT NULL AND skew_lo_ns IS NOT NULL;

CREATE OR REPLACE VIEW bounds AS
SELECT transport, cell, offset_ns IS NOT NULL AS judged,
    judged AND (truth_hi_ns < offset_ns - uncertainty_ns OR truth_lo_ns > offset_ns + uncertainty_ns) AS wrong
FROM spans WHERE mode <> 'off' AND copies > 0 AND truth_lo_ns IS NOT NULL;

-- A verdict that says what is not so is wrong; so is one that says nothing although the true gap is further from 0 than
-- both bounds together can blur.
CREATE OR REPLACE VIEW verdicts AS
SELECT transport, cell, verdict <> 'unsynchronized' AND steady AS judged,
    judged AND CASE verdict
        WHEN 'ordered' THEN gap_ns < 0 OR true_hi_ns < 0
        WHEN 'skewed' THEN gap_ns >= 0 OR true_hi_ns < 0
        WHEN 'impossible' THEN true_lo_ns >= 0
        WHEN 'indeterminate' THEN true_lo_ns > 2 * uncertainty_ns OR true_hi_ns < -2 * uncertainty_ns
        ELSE false
    END AS wrong
FROM ruled WHERE mode = 'tag' AND verdict IS NOT NULL AND true_lo_ns IS NOT NULL;

CREATE OR REPLACE VIEW rewritten_gaps AS
SELECT transport, cell, uncertainty_ns IS NOT NULL AND steady AS judged,
    judged AND (gap_ns < separation_lo_ns - uncertainty_ns OR gap_ns > separation_hi_ns + uncertainty_ns) AS wrong
FROM ruled
WHERE mode = 'rewrite' AND rule <> 'stamp-after-send' AND separation_lo_ns IS NOT NULL;

-- Each end moves by what its own instant deserves, right within the uncertainty. Steps inside spans are the long runs'.
CREATE OR REPLACE VIEW rewritten_durations AS
SELECT transport, cell, true AS judged,
    abs((end_ns - start_ns) - (raw_end_ns - raw_start_ns)) > 2 * coalesce(uncertainty_ns, 0) AS wrong
FROM twins WHERE mode = 'rewrite' AND purpose <> 'over-time';

CREATE OR REPLACE VIEW rewritten_order AS
WITH neighbours AS (
    SELECT transport, cell, start_ns, raw_start_ns,
        lag(start_ns) OVER one AS before_ns, lag(raw_start_ns) OVER one AS raw_before_ns
    FROM twins WHERE mode = 'rewrite' AND purpose <> 'over-time'
    WINDOW one AS (PARTITION BY transport, block, node ORDER BY raw_start_ns, message)
)
SELECT transport, cell, true AS judged,
    sign(start_ns - before_ns) <> sign(raw_start_ns - raw_before_ns) AS wrong
FROM neighbours WHERE before_ns IS NOT NULL;

CREATE OR REPLACE VIEW tagged_times AS
SELECT transport, cell, true AS judged,
    start_ns <> raw_start_ns OR end_ns <> raw_end_ns OR sent_ns IS DISTINCT FROM raw_sent_ns
    OR noted_ns IS DISTINCT FROM raw_noted_ns OR received_ns IS DISTINCT FROM raw_received_ns AS wrong
FROM twins WHERE mode = 'tag';

CREATE OR REPLACE VIEW outputs AS
SELECT DISTINCT ON (transport, block, message) transport, cell, true AS judged, output <> 'correct' AS wrong
FROM edges;

CREATE OR REPLACE VIEW delivered AS
SELECT transport, cell, made OR copies > 0 AS judged, judged AND (NOT made OR copies <> 1) AS wrong
FROM spans WHERE made OR copies > 0;

CREATE OR REPLACE VIEW must_hold AS
WITH every AS (
    SELECT 1 AS place, 'flips' AS id, * FROM flips
    UNION ALL SELECT 2, 'bounds', * FROM bounds
    UNION ALL SELECT 3, 'verdicts', * FROM verdicts
    UNION ALL SELECT 4, 'rewritten-gaps', * FROM rewritten_gaps
    UNION ALL SELECT 5, 'rewritten-durations', * FROM rewritten_durations
    UNION ALL SELECT 6, 'rewritten-order', * FROM rewritten_order
    UNION ALL SELECT 7, 'tagged-times', * FROM tagged_times
    UNION ALL SELECT 8, 'outputs', * FROM outputs
    UNION ALL SELECT 9, 'delivered', * FROM delivered
)
SELECT id, count(*) FILTER (judged) AS judged, count(*) FILTER (wrong) AS wrong,
    count(*) FILTER (NOT judged) AS undecided,
    arg_max(cell, wrongs) FILTER (wrongs > 0) AS worst_cell, max(wrongs) AS worst_wrong
FROM (SELECT *, count(*) FILTER (wrong) OVER (PARTITION BY id, transport, cell) AS wrongs FROM every)
GROUP BY id, place ORDER BY place;
