"""What decides the size and the colours of an image: its processor's files, and what the user set besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchscore.errors import CheckpointError, MissingDependencyError, UsageError, first_line, one_line
from batchscore.models.arch.entry import Json
from batchscore.models.checkpoint import Checkpoint
from batchscore.models.quiet import quiet
from batchscore.models.resolve.options import nearest
from batchscore.models.spec import ModelSpec


def image_processor(checkpoint: Checkpoint, spec: ModelSpec, **defaults: Any) -> Any:
    """transformers' image processor by the checkpoint's files, with what the user set.

    Raises:
        CheckpointError: the files say none, or it cannot be made.
        MissingDependencyError: torchvision is asked for, or needed, and not installed.
        UsageError: an option that the processor does not have.
    """
    from transformers import AutoImageProcessor
    from transformers.utils.import_utils import is_torchvision_available

    if spec.image_backend == "torchvision" and not is_torchvision_available():
        raise MissingDependencyError(
            "--image-backend torchvision needs torchvision, which is not installed",
            hint="pip install torchvision, or pass --image-backend pil",
        )
    options = {**defaults, **spec.processor_options}
    folder = checkpoint.folder_of("preprocessor_config.json")
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(
                folder, backend=spec.image_backend, trust_remote_code=False, **options
            )
    except ImportError as error:
        raise MissingDependencyError(
            f"{checkpoint.name}: transformers needs a package for its images: {one_line(error)}",
            hint="before 5.18 transformers has no image processors without torchvision",
        ) from error
    except Exception as error:  # transformers raises OSError, ValueError, KeyError
        raise CheckpointError(
            f"{checkpoint.name}: no image processor can be made from preprocessor_config.json: {first_line(error)}"
        ) from error
    known = set(getattr(processor.valid_kwargs, "__annotations__", {})) | set(vars(processor))
    _require_known(spec, spec.processor_options, dict.fromkeys(known), type(processor).__name__)
    return processor


def own_settings(saved: Json, spec: ModelSpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a family that makes pixels itself: what the user set, else the checkpoint's file, else `defaults`.

    Raises:
        UsageError: an option that has no effect, or whose value is of another type than the default.
    """
    if spec.image_backend != "pil":
        source = spec.sources["image_backend"].spell("image_backend")
        raise UsageError(f"{source} {spec.image_backend!r}: this model resizes images with Pillow, wherever it runs")
    options = {**spec.video_options, **spec.processor_options}
    _require_known(spec, options, defaults, "this model's processor")
    for name, value in options.items():
        if type(value) is not type(defaults[name]) or (type(value) is int and value < 1):
            source = spec.sources["processor_options"].spell("mm_processor_kwargs")
            raise UsageError(f"{source}: {name} {value!r} cannot be used", hint=f"one like {defaults[name]!r}")
    return {name: options.get(name, saved.get(name, default)) for name, default in defaults.items()}


def _require_known(spec: ModelSpec, options: Mapping[str, Any], known: Mapping[str, Any], owner: str) -> None:
    for name in options:
        if name not in known:
            source = spec.sources["processor_options"].spell("mm_processor_kwargs")
            raise UsageError(f"{source}: {owner} has no {name!r}", hint=nearest(name, known))
