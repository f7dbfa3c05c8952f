"""The way out: requests as bytes to any OTLP endpoint or to Kafka, and the answer back.

The next hop's acknowledgement is the only one there is: nothing is kept here, so nothing that was acknowledged can be
lost, and a next hop that is down is told to the exporter as "unavailable, try again", which every exporter knows how
to do. Small requests share a body, several endpoints share the work, a body that is too large is split, and what is
refused for good is kept where a person finds it.

Thinking: ``split.py`` (bytes), ``coalesce.py`` (who goes with whom, and when), ``retry.py`` (what failures mean, who is
asked next), ``responses.py`` (what exporters are told). Doing: ``lanes.py`` (one signal's way), ``hops.py`` (several
endpoints as one), ``grpc.py``, ``http.py``, ``kafka.py`` (one attempt), ``dead_letters.py`` (the file).

gRPC, aiohttp and the Kafka client are imported by the forwarder that needs them: a sidecar that speaks HTTP only starts
without gRPC.
"""

from skewd_sidecar.forward.forwarders import Forwarders
from skewd_sidecar.forward.grpc import GrpcForwarder
from skewd_sidecar.forward.http import HttpForwarder
from skewd_sidecar.forward.transport import Forwarder

__all__ = ["Forwarder", "Forwarders", "GrpcForwarder", "HttpForwarder"]
