// What an application in Go exports: one trace, three log records, a handful of metrics, by one protocol.
// export grpc|http, with CAPTURE_GRPC and CAPTURE_HTTP as in record.py.
package main

import (
	"context"
	"math"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/metric"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const begin = 1790000000123456789

func at(ns int64) time.Time { return time.Unix(0, begin+ns) }

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

var attributes = []attribute.KeyValue{
	attribute.String("text", "Grüße, 世界 🌍 \x00\n\"quoted\""),
	attribute.String("empty", ""),
	attribute.Bool("yes", true),
	attribute.Bool("no", false),
	attribute.Int64("zero", 0),
	attribute.Int64("minus", -1),
	attribute.Int64("odd", 1<<53+1),
	attribute.Int64("largest", math.MaxInt64),
	attribute.Int64("smallest", math.MinInt64),
	attribute.Float64("tenth", 0.1),
	attribute.Float64("tiny", math.SmallestNonzeroFloat64),
	attribute.Float64("huge", math.MaxFloat64),
	attribute.Float64("endless", math.Inf(1)),
	attribute.StringSlice("texts", []string{"a", "", "ß"}),
	attribute.Int64Slice("numbers", []int64{1, -2, 1<<53 + 1}),
	attribute.Float64Slice("fractions", []float64{0.5, 0.25}),
	attribute.BoolSlice("truths", []bool{true, false}),
	attribute.StringSlice("none", nil),
	attribute.ByteSlice("bytes", []byte{0, 255}),
	attribute.Map("map", attribute.Int64("odd", 1<<53+1), attribute.Slice("mixed", attribute.BoolValue(true), attribute.Value{})),
	attribute.Int64("clock.offset_ns", 17), // a name of ours, put there by somebody else
}

func main() {
	ctx := context.Background()
	overGrpc := os.Args[1] == "grpc"
	grpc, http := os.Getenv("CAPTURE_GRPC"), strings.TrimPrefix(os.Getenv("CAPTURE_HTTP"), "http://")
	res := resource.NewSchemaless(attribute.String("service.name", "capture-go"),
		attribute.String("service.version", "1.0"), attribute.String("host.name", "a-host"),
		attribute.Int("process.pid", 4242))

	var spans *otlptrace.Exporter
	if overGrpc {
		spans = must(otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(grpc), otlptracegrpc.WithInsecure()))
	} else {
		spans = must(otlptracehttp.New(ctx, otlptracehttp.WithEndpoint(http), otlptracehttp.WithInsecure()))
	}
	tracing := sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans), sdktrace.WithResource(res))
	tracer := tracing.Tracer("capture", trace.WithInstrumentationVersion("2.0"),
		trace.WithSchemaURL("https://opentelemetry.io/schemas/1.27.0"))
	far := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID:    must(trace.TraceIDFromHex("0af7651916cd43dd8448eb211c80319c")),
		SpanID:     must(trace.SpanIDFromHex("b7ad6b7169203331")),
		TraceFlags: trace.FlagsSampled, Remote: true,
		TraceState: must(trace.ParseTraceState("vendor=opaque")),
	})
	below, parent := tracer.Start(trace.ContextWithRemoteSpanContext(ctx, far), "parent ünïcode",
		trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(at(0)), trace.WithAttributes(attributes...),
		trace.WithLinks(trace.Link{SpanContext: far, Attributes: attributes}, trace.Link{SpanContext: far}))
	parent.AddEvent("sent", trace.WithAttributes(attributes...), trace.WithTimestamp(at(1000)))
	parent.AddEvent("bare", trace.WithTimestamp(at(1001)))
	for name, kind := range map[string]trace.SpanKind{"internal": trace.SpanKindInternal,
		"client": trace.SpanKindClient, "producer": trace.SpanKindProducer, "consumer": trace.SpanKindConsumer} {
		_, child := tracer.Start(below, name, trace.WithSpanKind(kind), trace.WithTimestamp(at(2000)))
		if kind == trace.SpanKindClient {
			child.AddEvent("exception", trace.WithAttributes(attribute.String("exception.message", "it broke")),
				trace.WithTimestamp(at(2500)))
			child.SetStatus(codes.Error, "kaputt")
		}
		child.End(trace.WithTimestamp(at(3000)))
	}
	parent.SetStatus(codes.Ok, "")
	parent.End(trace.WithTimestamp(at(4001)))
	check(tracing.Shutdown(ctx))

	var records sdklog.Exporter
	if overGrpc {
		records = must(otlploggrpc.New(ctx, otlploggrpc.WithEndpoint(grpc), otlploggrpc.WithInsecure()))
	} else {
		records = must(otlploghttp.New(ctx, otlploghttp.WithEndpoint(http), otlploghttp.WithInsecure()))
	}
	logging := sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(records)), sdklog.WithResource(res))
	logger := logging.Logger("capture", log.WithInstrumentationVersion("2.0"))
	var record log.Record
	record.SetTimestamp(at(1))
	record.SetObservedTimestamp(at(2))
	record.SetSeverity(log.SeverityInfo)
	record.SetSeverityText("INFO")
	record.SetBody(attribute.StringValue("said ünïcode"))
	record.AddAttributes(attributes...)
	logger.Emit(below, record)
	record = log.Record{}
	record.SetTimestamp(at(3))
	record.SetObservedTimestamp(at(4))
	record.SetBody(attribute.MapValue(attribute.Map("deep", attribute.Slice("list", attribute.Int64Value(1),
		attribute.StringValue("two"), attribute.Value{}, attribute.BoolValue(true)))))
	logger.Emit(ctx, record)
	record = log.Record{}
	record.SetObservedTimestamp(at(5))
	record.SetBody(attribute.StringValue("no time of its own"))
	record.SetEventName("event.named")
	logger.Emit(ctx, record)
	check(logging.Shutdown(ctx))

	var metrics sdkmetric.Exporter
	if overGrpc {
		metrics = must(otlpmetricgrpc.New(ctx, otlpmetricgrpc.WithEndpoint(grpc), otlpmetricgrpc.WithInsecure()))
	} else {
		metrics = must(otlpmetrichttp.New(ctx, otlpmetrichttp.WithEndpoint(http), otlpmetrichttp.WithInsecure()))
	}
	metering := sdkmetric.NewMeterProvider(sdkmetric.WithResource(res),
		sdkmetric.WithReader(sdkmetric.NewPeriodicReader(metrics, sdkmetric.WithInterval(time.Hour))))
	meter := metering.Meter("capture", metric.WithInstrumentationVersion("2.0"))
	must(meter.Int64Counter("things", metric.WithUnit("{thing}"), metric.WithDescription("counted"))).
		Add(below, 1<<53+1, metric.WithAttributes(attribute.String("where", "hier")))
	must(meter.Float64UpDownCounter("level")).Add(ctx, -3.5)
	histogram := must(meter.Float64Histogram("took", metric.WithUnit("ms")))
	for _, value := range []float64{0.5, 7, 123456} {
		histogram.Record(below, value, metric.WithAttributes(attribute.String("route", "/ünïcode")))
	}
	must(meter.Float64Gauge("heat")).Record(ctx, 36.6)
	check(metering.Shutdown(ctx))
}
