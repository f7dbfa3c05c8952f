// What an application in JavaScript exports: one trace, three log records, a handful of metrics, by one protocol.
// node export.mjs grpc|http|json, with CAPTURE_GRPC and CAPTURE_HTTP as in record.py.
import { ROOT_CONTEXT, SpanKind, SpanStatusCode, TraceFlags, trace } from "@opentelemetry/api";
import { SeverityNumber } from "@opentelemetry/api-logs";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BasicTracerProvider, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base";
import { LoggerProvider, SimpleLogRecordProcessor } from "@opentelemetry/sdk-logs";
import { MeterProvider, PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics";

const protocol = process.argv[2];
const kind = { grpc: "grpc", http: "proto", json: "http" }[protocol];
const exporter = async (signal, name) => {
  const module = await import(`@opentelemetry/exporter-${signal}-otlp-${kind}`);
  const path = signal === "trace" ? "traces" : signal;
  const url = protocol === "grpc" ? `http://${process.env.CAPTURE_GRPC}` : `${process.env.CAPTURE_HTTP}/v1/${path}`;
  return new module[name]({ url });
};

const resource = resourceFromAttributes({
  "service.name": "capture-javascript",
  "service.version": "1.0",
  "host.name": "a-host",
  "process.pid": 4242,
});
const at = (ns) => [1790000000, 123456789 + ns]; // seconds and nanoseconds since 1970
const attributes = {
  text: "Grüße, 世界 🌍 \u0000\n\"quoted\"",
  empty: "",
  yes: true,
  no: false,
  zero: 0,
  minus: -1,
  large: Number.MAX_SAFE_INTEGER,
  tenth: 0.1,
  tiny: 5e-324,
  // Nothing larger than 2^63: JavaScript takes 1e300 for an integer, and its SDK sends it as an intValue, which it is not.
  fine: -1.7976931348623157e-300,
  texts: ["a", "", "ß"],
  numbers: [1, -2, 3],
  fractions: [0.5, 0.25],
  truths: [true, false],
  none: [],
  "clock.offset_ns": 17, // a name of ours, put there by somebody else
};

// Finished spans go to the exporter together, as they do from a batch processor.
const finished = [];
const tracing = new BasicTracerProvider({
  resource,
  spanProcessors: [
    { onStart() {}, onEnd: (span) => finished.push(span), forceFlush: async () => {}, shutdown: async () => {} },
  ],
});
const tracer = tracing.getTracer("capture", "2.0", { schemaUrl: "https://opentelemetry.io/schemas/1.27.0" });
const far = {
  traceId: "0af7651916cd43dd8448eb211c80319c",
  spanId: "b7ad6b7169203331",
  traceFlags: TraceFlags.SAMPLED,
  isRemote: true,
};
const parent = tracer.startSpan(
  "parent ünïcode",
  { kind: SpanKind.SERVER, startTime: at(0), attributes, links: [{ context: far, attributes }, { context: far }] },
  trace.setSpanContext(ROOT_CONTEXT, far),
);
parent.addEvent("sent", attributes, at(1000));
parent.addEvent("bare", at(1001));
const below = trace.setSpan(ROOT_CONTEXT, parent);
for (const [name, spanKind] of Object.entries({ inner: 0, client: 2, producer: 3, consumer: 4 })) {
  const child = tracer.startSpan(name, { kind: spanKind, startTime: at(2000) }, below);
  if (name === "client") {
    child.recordException(Object.assign(new Error("it broke"), { stack: "no stack" }), at(2500));
    child.setStatus({ code: SpanStatusCode.ERROR, message: "kaputt" });
  }
  child.end(at(3000));
}
parent.setStatus({ code: SpanStatusCode.OK });
parent.end(at(4001));
const spans = await exporter("trace", "OTLPTraceExporter");
await new Promise((done, failed) =>
  spans.export(finished, (result) => (result.code === 0 ? done() : failed(result.error))),
);
await spans.shutdown();

const records = [];
const logging = new LoggerProvider({
  resource,
  processors: [{ onEmit: (record) => records.push(record), forceFlush: async () => {}, shutdown: async () => {} }],
});
const logger = logging.getLogger("capture", "2.0");
logger.emit({ timestamp: at(1), observedTimestamp: at(2), severityNumber: SeverityNumber.INFO, severityText: "INFO",
  body: "said ünïcode", attributes, context: below });
logger.emit({ timestamp: at(3), observedTimestamp: at(4), body: { deep: { list: [1, "two", null, true] } } });
logger.emit({ timestamp: [0, 0], observedTimestamp: at(5), body: "no time of its own" }); // else it takes its own clock
const logs = await exporter("logs", "OTLPLogExporter");
await new Promise((done, failed) => logs.export(records, (result) => (result.code === 0 ? done() : failed(result.error))));
await logs.shutdown();

const reader = new PeriodicExportingMetricReader({
  exporter: await exporter("metrics", "OTLPMetricExporter"),
  exportIntervalMillis: 3600000,
});
const metering = new MeterProvider({ resource, readers: [reader] });
const meter = metering.getMeter("capture", "2.0");
meter.createCounter("things", { unit: "{thing}", description: "counted" }).add(Number.MAX_SAFE_INTEGER, { where: "hier" });
meter.createUpDownCounter("level").add(-3.5);
const histogram = meter.createHistogram("took", { unit: "ms" });
for (const value of [0.5, 7, 123456]) histogram.record(value, { route: "/ünïcode" });
meter.createObservableGauge("heat").addCallback((result) => result.observe(36.6));
await metering.shutdown();
