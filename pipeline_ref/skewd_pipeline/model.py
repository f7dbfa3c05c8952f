"""The model that the pipeline's inference stage runs: a real one, small enough for any machine, or the user's own.

The problem: an experiment on inference pipelines needs inference. The insight: the file-type detector ``magika``
ships a real ONNX network in its package, runs offline on a CPU in a few milliseconds, and its answers on source
files can be checked. Anyone's own model fits too: ``module:callable``, bytes in, a label out.

onnxruntime would start a thread for every core and spin in them, which on a small machine takes the cores from the
other stages and shows up as their latency. One thread is enough for one item at a time, so that is what it gets.

Limits: one item at a time; labels are text of at most ``MAX_LABEL_CHARS``.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "magika"
MAX_LABEL_CHARS = 200


class ModelError(ValueError):
    """A model cannot be loaded, or does not behave like one; the message says what to write or install."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model: call it with the bytes of one item, get its label.

    Args:
        spec: how the user named it ("magika" or "module:callable").
        identity: changes whenever its answers may change: name and versions, or a digest of the user's module. Labels
            computed earlier are kept under it.
    """

    spec: str
    identity: str
    _classify: Callable[[bytes], Any]

    def __call__(self, data: bytes) -> str:
        """The label of one item.

        Raises:
            ModelError: the model answered with something that is not a short text.
        """
        label = self._classify(data)
        if not isinstance(label, str) or not 0 < len(label) <= MAX_LABEL_CHARS:
            raise ModelError(
                f"model '{self.spec}' answered {label!r:.80} ({type(label).__name__}); "
                f"it must return a text of 1 to {MAX_LABEL_CHARS} characters"
            )
        return label


def load_model(spec: str | None = None) -> Model:
    """Load a model by name.

    Args:
        spec: ``None`` or "magika" for the default; ``module:callable`` for one's own (the current directory is
            searched too).

    Raises:
        ModelError: not installed, not importable, not callable; the message says what to do.
    """
    if spec is None or spec == DEFAULT_MODEL:
        return _load_magika()
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise ModelError(f"'{spec}' names no model; write magika, or module:callable (bytes in, label out)")
    return _load_own(spec, module_name, attribute)


def _load_magika() -> Model:
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types
        from magika import Magika
    except ImportError as error:
        raise ModelError(
            f"the default model needs the package '{error.name}'; install magika, or give --model module:callable"
        ) from error

    class OneThread(Magika):
        """The detector, with one thread in its network instead of one for every core."""

        def _init_onnx_session(self) -> onnxruntime.InferenceSession:
            onnxruntime.disable_telemetry_events()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            return onnxruntime.InferenceSession(
                str(self._model_path), sess_options=options, providers=["CPUExecutionProvider"]
            )

    detector = OneThread()
    identity = f"magika {version('magika')} {detector.get_model_name()} onnxruntime {version('onnxruntime')}"

    def classify(data: bytes) -> str:
        return str(detector.identify_bytes(data).output.label)

    return Model(DEFAULT_MODEL, identity, classify)


def _load_own(spec: str, module_name: str, attribute: str) -> Model:
    # The console script's sys.path lacks the directory the user stands in, where their module usually is.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ModelError(f"model '{spec}': importing {module_name} failed: {type(error).__name__}: {error}") from error
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if inspect.isclass(found):
        found = found()
    if not callable(found):
        raise ModelError(f"model '{spec}': module {module_name} has no callable '{attribute}'")
    return Model(spec, f"{spec} {_digest_of_source(module)}", found)


def _digest_of_source(module: Any) -> str:
    """A digest of the module's file, so that an edited model is not checked against its old answers."""
    source = getattr(module, "__file__", None)
    if source is None:
        return "built-in"
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]
