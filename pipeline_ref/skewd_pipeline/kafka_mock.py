"""librdkafka's mock cluster in a process of its own: ``python -m skewd_pipeline.kafka_mock``.

The problem: where there is no Java the experiment still wants something that speaks Kafka's protocol. librdkafka
brings a mock cluster for its own tests, which other processes may use. The insight: it has to live alone. Inside a
stage it would share that stage's interpreter and its settings; alone, it only has to stay out of the way.

Prints one line, ``{"bootstrap": "127.0.0.1:PORT", "version": "..."}``, and serves until its standard input ends.

Limits: a mock. It keeps everything in memory, loses messages when flooded, and holds an empty fetch for the whole
``fetch.wait.max.ms``. Whoever uses it says so in every result.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

import confluent_kafka as ck

START_LIMIT_S = 10.0


def main() -> int:
    """Serve until standard input ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    # Nagle's delay applies to the mock's own sockets as well, which take this client's settings.
    holder = ck.Producer({"test.mock.num.brokers": 1, "socket.nagle.disable": True, "log_level": 3})
    brokers = holder.list_topics(timeout=START_LIMIT_S).brokers
    broker = next(iter(brokers.values()))
    print(json.dumps({"bootstrap": f"{broker.host}:{broker.port}", "version": ck.libversion()[0]}), flush=True)
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Nothing here is worth keeping, and the mock's threads need not be waited for.
    os._exit(code)
