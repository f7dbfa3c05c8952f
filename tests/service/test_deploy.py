"""The container file and the Kubernetes manifests: what they name exists, and nothing in them runs with more than it
needs. No cluster and no container engine is asked; a manifest's keys are checked where they matter, not all of them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from skewd.config import load_config, parse_config
from skewd_pipeline.options import STAGES
from skewd_pipeline.stage_config import parse

CHECKOUT = Path(__file__).parent.parent.parent
CONTAINERFILE = CHECKOUT / "deploy" / "Containerfile"
MANIFESTS = CHECKOUT / "deploy" / "kubernetes"


def instructions() -> list[tuple[str, str]]:
    """The container file as (instruction, rest), continuation lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def test_everything_copied_into_the_image_exists() -> None:
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and not rest.startswith("--from=")]
    assert copied
    for source in (source for sources in copied for source in sources):
        assert (CHECKOUT / source).exists(), source


def stages() -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Each stage's base, its name (empty if it has none), and what is done in it."""
    found: list[tuple[str, str, list[tuple[str, str]]]] = []
    for name, rest in instructions():
        if name == "FROM":
            base, _, called = rest.partition(" AS ")
            found.append((base, called, []))
        elif found:
            found[-1][2].append((name, rest))
    return found


def test_stages_build_on_plain_names_or_on_earlier_stages() -> None:
    known: set[str] = set()
    for base, called, done in stages():
        assert base in known or re.fullmatch(r"[a-z]+:[0-9.]+(-[a-z]+)*", base), base
        copied = [
            rest.split()[0].removeprefix("--from=") for name, rest in done if name == "COPY" and "--from=" in rest
        ]
        assert set(copied) <= known, copied
        known.add(called)
    base, called, done = stages()[-1]
    assert (called, base) == ("", stages()[0][0]), "the interpreter that runs it is the one that it was installed by"
    assert [rest for name, rest in done if name == "COPY"] == ["--from=build /opt/skewd /opt/skewd"]


def test_the_image_has_the_native_part_from_a_stage_of_its_own() -> None:
    by_name = {called: (base, dict(done)) for base, called, done in stages()}
    base, done = by_name["native"]
    assert base.startswith("rust:")
    version = tuple(map(int, base.partition(":")[2].partition("-")[0].split(".")))
    cargo = tomllib.loads((CHECKOUT / "sidecar" / "native" / "Cargo.toml").read_text())["package"]
    assert version >= tuple(map(int, cargo["rust-version"].split(".")))
    assert done["RUN"] == "maturin build --release --manifest-path sidecar/native/Cargo.toml --out dist"
    copied, installed = by_name["build"][1]["COPY"], by_name["build"][1]["RUN"]
    assert copied == "--from=native /src/dist/ dist/", "both wheels lie in one folder"
    assert "--no-deps dist/*.whl" in installed


def test_the_image_runs_without_root() -> None:
    last = dict(stages()[-1][2])
    assert int(last["USER"].split(":")[0]) >= 1000
    assert (last["ENTRYPOINT"], last["CMD"]) == ('["skewd"]', '["run"]')


def test_everything_installed_is_pinned_by_hash() -> None:
    installs = [part for _, rest in instructions() for part in rest.split("&&") if "pip install" in part]
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-deps dist/*.whl" in install, install


def test_the_build_tool_comes_with_all_it_needs() -> None:
    """The container file names what hatchling and maturin require, since it takes them out of a longer list."""
    (named,) = re.findall(r"\^\\\(([^)]*)\\\)==", CONTAINERFILE.read_text())
    needed, look = set[str](), ["hatchling", "maturin"]
    while look:
        name = look.pop()
        if name not in needed:
            needed.add(name)
            marked = [text for text in metadata.requires(name) or [] if ";" not in text]
            look += [re.split(r"[^A-Za-z0-9-]", text)[0].lower() for text in marked]
    assert set(named.split(r"\|")) == needed
    pins = (CHECKOUT / "requirements" / "all.txt").read_text()
    assert all(f"\n{name}==" in f"\n{pins}" for name in needed)


def documents(name: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def of_kind(name: str, kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents(name) if document["kind"] == kind)
    return found


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "pod.yaml", of_kind("pod.yaml", "Pod")["spec"]
    yield "daemonset.yaml", of_kind("daemonset.yaml", "DaemonSet")["spec"]["template"]["spec"]


def test_the_sidecar_is_native_and_starts_before_the_application() -> None:
    spec = of_kind("pod.yaml", "Pod")["spec"]
    (sidecar,) = spec["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["args"][0] == "sidecar"
    assert "startupProbe" in sidecar, "without one, the application would not wait for it"
    (application,) = spec["containers"]
    (endpoint,) = (item["value"] for item in application["env"] if item["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT")
    assert endpoint == f"http://{load_config(None, environment(sidecar)).sidecar.grpc}"


def test_pods_read_what_the_daemon_writes() -> None:
    (pod, daemon) = (spec for _, spec in pod_specs())
    places = [
        volume["hostPath"]["path"] for spec in (pod, daemon) for volume in spec["volumes"] if "hostPath" in volume
    ]
    assert places == ["/run/skewd", "/run/skewd"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        for mount in container.get("volumeMounts", []):
            assert mount["readOnly"] is True
            assert "subPath" not in mount, "a mounted file would not follow a restarted daemon"


def environment(container: dict[str, Any]) -> dict[str, str]:
    """A container's variables; what the cluster fills in stands for itself."""
    return {item["name"]: item.get("value", "node-a") for item in container.get("env", [])}


def test_the_configuration_is_accepted() -> None:
    text = of_kind("daemonset.yaml", "ConfigMap")["data"]["skewd.toml"]
    (daemon,) = of_kind("daemonset.yaml", "DaemonSet")["spec"]["template"]["spec"]["containers"]
    config = parse_config(text.encode(), Path("skewd.toml"), environment(daemon)).config
    assert config.node.name == "node-a"
    mounts = [Path(mount["mountPath"]) for mount in daemon["volumeMounts"]]
    assert config.mesh.key_file is not None
    assert config.mesh.key_file.parent in mounts
    assert config.node.runtime_dir in mounts
    assert config.metrics.listen is not None
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = daemon[probe]["httpGet"]
        assert config.metrics.listen == f"{asked['host']}:{asked['port']}", probe


def test_nodes_find_each_other_through_a_headless_service() -> None:
    service = of_kind("daemonset.yaml", "Service")
    text = of_kind("daemonset.yaml", "ConfigMap")["data"]["skewd.toml"]
    mesh = parse_config(text.encode(), Path("skewd.toml"), {}).config.mesh
    spec, (port,) = service["spec"], service["spec"]["ports"]
    assert mesh.dns == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc:{port['port']}"
    assert spec["clusterIP"] == "None", "a virtual address would be one peer, another one at each exchange"
    assert spec["publishNotReadyAddresses"] is True, "pods wait for each other to be ready otherwise"
    assert port["protocol"] == "UDP"
    template = of_kind("daemonset.yaml", "DaemonSet")["spec"]["template"]
    assert spec["selector"].items() <= template["metadata"]["labels"].items()
    assert mesh.listen is not None
    assert mesh.listen.endswith(f":{port['port']}")
    (daemon,) = template["spec"]["containers"]
    assert {"name": "mesh", "containerPort": port["port"], "protocol": "UDP"} in daemon["ports"]
    assert template["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet", (
        "else a pod on the host's network can't resolve it"
    )


def experiment_specs() -> list[tuple[str, dict[str, Any]]]:
    jobs = [document for document in documents("experiment.yaml") if document["kind"] == "Job"]
    return [(job["metadata"]["name"], job["spec"]["template"]["spec"]) for job in jobs]


def test_the_experiments_stages_are_all_there_and_read_a_file_that_is_right_for_each() -> None:
    text = of_kind("experiment.yaml", "ConfigMap")["data"]["stages.toml"]
    containers = [container for _, spec in experiment_specs() for container in spec["containers"]]
    assert sorted(container["args"][2] for container in containers) == sorted(STAGES)
    for container in containers:
        assert container["args"][:2] == ["experiment", "stage"]
        assert container["args"][3] == "--config"
        mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        assert Path(container["args"][4]).parent in mounts
        told = parse(text, container["args"][2])
        assert told.results.parent in mounts, "else nothing could be written there"
        assert told.items.parent in mounts
        assert told.stamp_offset_ns == 0


def test_the_experiments_hops_lead_through_services_to_the_containers_that_listen() -> None:
    text = of_kind("experiment.yaml", "ConfigMap")["data"]["stages.toml"]
    services = {
        doc["metadata"]["name"]: doc["spec"] for doc in documents("experiment.yaml") if doc["kind"] == "Service"
    }
    jobs = {doc["metadata"]["name"]: doc for doc in documents("experiment.yaml") if doc["kind"] == "Job"}
    for service in services.values():
        (job,) = [job for job in jobs.values() if service["selector"].items() <= labels(job).items()]
        opened = {
            port["containerPort"]
            for container in job["spec"]["template"]["spec"]["containers"]
            for port in container.get("ports", [])
        }
        assert {port["port"] for port in service["ports"]} <= opened
    for upstream, downstream in pairwise(STAGES):
        outbox, inbox = parse(text, upstream).outbox, parse(text, downstream).inbox
        assert outbox is not None
        assert inbox is not None
        host, _, port = (outbox.endpoint or "").removeprefix("tcp://").partition(":")
        assert int(port) in {one["port"] for one in services[host]["ports"]}
        assert inbox.endpoint == f"tcp://0.0.0.0:{port}"
        (job,) = [job for job in jobs.values() if services[host]["selector"].items() <= labels(job).items()]
        assert downstream in [container["name"] for container in job["spec"]["template"]["spec"]["containers"]]


def labels(job: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = job["spec"]["template"]["metadata"]["labels"]
    return found


def test_the_experiments_spans_pass_a_sidecar_on_their_way_to_the_consumer() -> None:
    text = of_kind("experiment.yaml", "ConfigMap")["data"]["stages.toml"]
    collect = parse(text, "consumer").collect
    assert collect is not None
    for name, spec in experiment_specs():
        (sidecar,) = spec["initContainers"]
        assert sidecar["restartPolicy"] == "Always", "else the job would never be complete"
        told = load_config(None, environment(sidecar)).sidecar
        assert parse(text, "inference").otlp == f"http://{told.http}"
        assert told.forward == f"http://skewd-experiment-front:{collect.rpartition(':')[2]}", name
        assert {"name": "skewd", "mountPath": "/run/skewd", "readOnly": True} in sidecar["volumeMounts"]
        assert spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]


def test_no_container_holds_what_it_does_not_need() -> None:
    for name, spec in (*pod_specs(), *experiment_specs()):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["initContainers"], *spec["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, (name, container["name"])
            assert context["capabilities"]["drop"] == ["ALL"]
            # One container is root, to hand one directory over, with the one capability that takes.
            added = context["capabilities"].get("add", [])
            assert added == (["CHOWN"] if container["name"] == "runtime-directory" else [])
            assert "limits" in container["resources"]
            if container["image"].startswith("skewd"):
                assert context["readOnlyRootFilesystem"] is True
