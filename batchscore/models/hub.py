"""Models on the Hugging Face Hub: their small files first, their weights only when something reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchscore.errors import NotFoundError, one_line

# everything that decides what a model means: settings, tokenizers, templates, code; BGE-M3's projection, which is
# small, is here because its presence says how the model may score
_SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.metadata", "*.model", "*.spm", "*.tiktoken", "*.codes", "*.py"]
_SMALL_FILES += ["colbert_linear.pt"]
_OTHER_RUNTIMES = ("onnx/*", "openvino/*")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of a model on the hub, and the folder of the hub's cache with the files fetched so far."""

    repository: str
    folder: Path

    @property
    def commit(self) -> str:
        """The revision, resolved: a branch may move between two processes of a job, a commit cannot."""
        return self.folder.name

    def fetch(self, files: Sequence[str]) -> None:
        """Download these files unless they are in the cache; names that the repository lacks are ignored.

        Raises:
            NotFoundError: the hub cannot be reached.
        """
        _download(self.repository, self.commit, files)

    def shapes(self, file: str) -> dict[str, tuple[int, ...]] | None:
        """{tensor: shape} from the header of a safetensors file, without its data; None if there is no such file.

        Raises:
            NotFoundError: the hub cannot be reached.
        """
        from huggingface_hub import parse_safetensors_file_metadata
        from huggingface_hub.errors import EntryNotFoundError

        try:
            metadata = parse_safetensors_file_metadata(self.repository, file, revision=self.commit)
        except EntryNotFoundError:
            return None
        except Exception as error:  # as in _download
            raise NotFoundError(f"{self.repository}: the hub did not give {file}: {one_line(error)}") from error
        return {name: tuple(tensor.shape) for name, tensor in metadata.tensors.items()}


def open_snapshot(repository: str, revision: str | None) -> Snapshot:
    """Download the small files of a model.

    Raises:
        NotFoundError: no such model, or the hub cannot be reached and the files are not in its cache.
    """
    return Snapshot(repository, _download(repository, revision, _SMALL_FILES))


def _download(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(files), ignore_patterns=list(_OTHER_RUNTIMES)
            )
        )
    # only the hub's client runs here, and it raises its own errors and those of every layer of the network
    except Exception as error:
        raise NotFoundError(
            f"model {repository!r} is not a folder and could not be fetched from the hub: {one_line(error)}",
            hint="check the spelling and the network, or download it and pass the folder",
        ) from error
