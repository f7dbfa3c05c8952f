import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.common.Value;
import io.opentelemetry.api.logs.Logger;
import io.opentelemetry.api.logs.Severity;
import io.opentelemetry.api.metrics.DoubleHistogram;
import io.opentelemetry.api.metrics.Meter;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.api.trace.TraceFlags;
import io.opentelemetry.api.trace.TraceState;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.exporter.otlp.http.logs.OtlpHttpLogRecordExporter;
import io.opentelemetry.exporter.otlp.http.metrics.OtlpHttpMetricExporter;
import io.opentelemetry.exporter.otlp.http.trace.OtlpHttpSpanExporter;
import io.opentelemetry.exporter.otlp.logs.OtlpGrpcLogRecordExporter;
import io.opentelemetry.exporter.otlp.metrics.OtlpGrpcMetricExporter;
import io.opentelemetry.exporter.otlp.trace.OtlpGrpcSpanExporter;
import io.opentelemetry.sdk.logs.SdkLoggerProvider;
import io.opentelemetry.sdk.logs.export.BatchLogRecordProcessor;
import io.opentelemetry.sdk.logs.export.LogRecordExporter;
import io.opentelemetry.sdk.metrics.SdkMeterProvider;
import io.opentelemetry.sdk.metrics.export.MetricExporter;
import io.opentelemetry.sdk.metrics.export.PeriodicMetricReader;
import io.opentelemetry.sdk.resources.Resource;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.export.BatchSpanProcessor;
import io.opentelemetry.sdk.trace.export.SpanExporter;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/**
 * What an application in Java exports: one trace, three log records, a handful of metrics, by one protocol.
 * java Export grpc|http, with CAPTURE_GRPC and CAPTURE_HTTP as in record.py.
 */
public class Export {
  static final long BEGIN = 1790000000123456789L;
  static final TimeUnit NS = TimeUnit.NANOSECONDS;
  static final Attributes ATTRIBUTES =
      Attributes.builder()
          .put("text", "Grüße, 世界 🌍 \u0000\n\"quoted\"")
          .put("empty", "")
          .put("yes", true)
          .put("no", false)
          .put("zero", 0)
          .put("minus", -1)
          .put("odd", (1L << 53) + 1)
          .put("largest", Long.MAX_VALUE)
          .put("smallest", Long.MIN_VALUE)
          .put("tenth", 0.1)
          .put("tiny", Double.MIN_VALUE)
          .put("huge", Double.MAX_VALUE)
          .put("endless", Double.POSITIVE_INFINITY)
          .put("texts", "a", "", "ß")
          .put("numbers", 1, -2, (1L << 53) + 1)
          .put("fractions", 0.5, 0.25)
          .put("truths", true, false)
          .put(AttributeKey.stringArrayKey("none"), java.util.List.of())
          .put("clock.offset_ns", 17) // a name of ours, put there by somebody else
          .build();

  public static void main(String[] arguments) {
    boolean grpc = arguments[0].equals("grpc");
    String overGrpc = "http://" + System.getenv("CAPTURE_GRPC");
    String overHttp = System.getenv("CAPTURE_HTTP") + "/v1/";
    Resource resource =
        Resource.create(
            Attributes.builder()
                .put("service.name", "capture-java")
                .put("service.version", "1.0")
                .put("host.name", "a-host")
                .put("process.pid", 4242)
                .build());

    SpanExporter spans =
        grpc
            ? OtlpGrpcSpanExporter.builder().setEndpoint(overGrpc).build()
            : OtlpHttpSpanExporter.builder().setEndpoint(overHttp + "traces").build();
    SdkTracerProvider tracing =
        SdkTracerProvider.builder()
            .setResource(resource)
            .addSpanProcessor(BatchSpanProcessor.builder(spans).build())
            .build();
    Tracer tracer =
        tracing
            .tracerBuilder("capture")
            .setInstrumentationVersion("2.0")
            .setSchemaUrl("https://opentelemetry.io/schemas/1.27.0")
            .build();
    SpanContext far =
        SpanContext.createFromRemoteParent(
            "0af7651916cd43dd8448eb211c80319c",
            "b7ad6b7169203331",
            TraceFlags.getSampled(),
            TraceState.builder().put("vendor", "opaque").build());
    Span parent =
        tracer
            .spanBuilder("parent ünïcode")
            .setParent(Context.root().with(Span.wrap(far)))
            .setSpanKind(SpanKind.SERVER)
            .setStartTimestamp(BEGIN, NS)
            .setAllAttributes(ATTRIBUTES)
            .addLink(far, ATTRIBUTES)
            .addLink(far)
            .startSpan();
    parent.addEvent("sent", ATTRIBUTES, BEGIN + 1000, NS);
    parent.addEvent("bare", BEGIN + 1001, NS);
    Context below = Context.root().with(parent);
    for (SpanKind kind : new SpanKind[] {SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER}) {
      Span child =
          tracer
              .spanBuilder(kind.name().toLowerCase())
              .setParent(below)
              .setSpanKind(kind)
              .setStartTimestamp(BEGIN + 2000, NS)
              .startSpan();
      if (kind == SpanKind.CLIENT) {
        child.addEvent("exception", Attributes.builder().put("exception.message", "it broke").build(), BEGIN + 2500, NS);
        child.setStatus(StatusCode.ERROR, "kaputt");
      }
      child.end(BEGIN + 3000, NS);
    }
    parent.setStatus(StatusCode.OK);
    parent.end(BEGIN + 4001, NS);
    tracing.shutdown().join(10, TimeUnit.SECONDS);

    LogRecordExporter records =
        grpc
            ? OtlpGrpcLogRecordExporter.builder().setEndpoint(overGrpc).build()
            : OtlpHttpLogRecordExporter.builder().setEndpoint(overHttp + "logs").build();
    SdkLoggerProvider logging =
        SdkLoggerProvider.builder()
            .setResource(resource)
            .addLogRecordProcessor(BatchLogRecordProcessor.builder(records).build())
            .build();
    Logger logger = logging.loggerBuilder("capture").setInstrumentationVersion("2.0").build();
    logger
        .logRecordBuilder()
        .setTimestamp(BEGIN + 1, NS)
        .setObservedTimestamp(BEGIN + 2, NS)
        .setContext(below)
        .setSeverity(Severity.INFO)
        .setSeverityText("INFO")
        .setBody("said ünïcode")
        .setAllAttributes(ATTRIBUTES)
        .emit();
    logger
        .logRecordBuilder()
        .setTimestamp(BEGIN + 3, NS)
        .setObservedTimestamp(BEGIN + 4, NS)
        .setBody(
            Value.of(
                Map.of(
                    "deep",
                    Value.of(Value.of(1), Value.of("two"), Value.of(true), Value.of(new byte[] {0, (byte) 255})))))
        .emit();
    logger.logRecordBuilder().setObservedTimestamp(BEGIN + 5, NS).setBody("no time of its own").emit();
    logging.shutdown().join(10, TimeUnit.SECONDS);

    MetricExporter metrics =
        grpc
            ? OtlpGrpcMetricExporter.builder().setEndpoint(overGrpc).build()
            : OtlpHttpMetricExporter.builder().setEndpoint(overHttp + "metrics").build();
    SdkMeterProvider metering =
        SdkMeterProvider.builder()
            .setResource(resource)
            .registerMetricReader(PeriodicMetricReader.builder(metrics).setInterval(Duration.ofHours(1)).build())
            .build();
    Meter meter = metering.meterBuilder("capture").setInstrumentationVersion("2.0").build();
    Attributes where = Attributes.builder().put("where", "hier").build();
    meter.counterBuilder("things").setUnit("{thing}").setDescription("counted").build().add((1L << 53) + 1, where, below);
    meter.upDownCounterBuilder("level").ofDoubles().build().add(-3.5);
    DoubleHistogram histogram = meter.histogramBuilder("took").setUnit("ms").build();
    for (double value : new double[] {0.5, 7, 123456}) {
      histogram.record(value, Attributes.builder().put("route", "/ünïcode").build(), below);
    }
    meter.gaugeBuilder("heat").build().set(36.6);
    metering.shutdown().join(10, TimeUnit.SECONDS);
  }
}
