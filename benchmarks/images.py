"""Images a second on the CPU, from files to vectors, against sentence-transformers.

    python benchmarks/images.py clip|qwen3-vl [--rounds 3] [--images 64] [--size 640x480] [--profile]

The images are JPEG files with shapes and noise, all different. The models are random: a CLIP of the size of ViT-B/32,
and a Qwen3-VL-Embedding of 8 layers and 512 dimensions with an image tower of 8 layers and 384. What a forward costs
does not depend on what was learned. Each peer runs in a process of its own, in turns, with Pillow as its image
backend, from file names to vectors. Imports, weights and a few other images, which are encoded before, are not counted.

* sentence-transformers: `SentenceTransformer.encode_document` of image files that are opened and not yet decoded.
* batchscore: `Scorer.encode` of content parts with URLs of the files, without the cache that answers what came before.

The gap is the largest difference between the peers' normalised vectors. `--profile` runs each peer once more and says
where the time went: seconds of all threads, each counted in the innermost of the stages that it was in. Where threads
work ahead these are more than the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[Sequence[Path]], NDArray[np.float32]]
Json = dict[str, Any]

WARM_UP_IMAGES, SHOWN_VECTORS = 4, 8


# ---- images


def write_images(folder: Path, count: int, width: int, height: int) -> None:
    """JPEG files with the detail of a photograph, roughly: soft shapes under fine noise, the same every time."""
    from PIL import Image

    folder.mkdir()
    for number in range(count):
        chance = np.random.default_rng(number)
        soft = Image.fromarray(chance.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noise = chance.normal(0, 6, (height, width, 1))
        pixels = np.clip(np.asarray(soft, np.float32) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=90)


# ---- models

END = "<|endoftext|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.content is string %}{{- m.content }}
{%- else %}{%- for c in m.content %}{%- if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif c.type == 'text' %}{{- c.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
MEAN_AND_STD = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "qwen3-vl": ([0.5] * 3, [0.5] * 3),
}


def write_json(path: Path, value: object) -> None:
    """One file of a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def write_tokenizer(folder: Path, tokenizer_class: str) -> dict[str, int]:
    """A byte-level tokenizer without merges; returns the ids of its special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": tokenizer_class, "eos_token": END, "pad_token": END}
    write_json(folder / "tokenizer_config.json", {**config, "unk_token": None, "model_max_length": 32_768})
    return {token: len(vocab) + number for number, token in enumerate(SPECIAL)}


def build_clip(folder: Path) -> None:
    """The sizes of ViT-B/32; its text tower has the width and depth but only a vocabulary of bytes."""
    from transformers import CLIPConfig, CLIPModel

    ids = write_tokenizer(folder, "PreTrainedTokenizerFast")
    end = ids[END]
    text = {"vocab_size": 256 + len(SPECIAL), "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    text |= {"num_attention_heads": 8, "bos_token_id": ids["<|im_start|>"], "eos_token_id": end, "pad_token_id": end}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision |= {"image_size": 224, "patch_size": 32}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    mean, std = MEAN_AND_STD["clip"]
    switches = ("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize")
    sizes = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3}
    classes = {"image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor"}
    values = {**dict.fromkeys(switches, True), **sizes, **classes, "image_mean": mean, "image_std": std}
    write_json(folder / "preprocessor_config.json", values)


def build_qwen3_vl(folder: Path) -> None:
    """A Qwen3-VL-Embedding in the layout of the hub: last token, normalised, with its template and instruction."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = write_tokenizer(folder, "PreTrainedTokenizerFast")
    text: Json = {
        "vocab_size": 256 + len(SPECIAL),
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
    }
    text |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 32_768}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True, "mrope_section": [12, 10, 10]}
    text |= {"rope_parameters": rope, "tie_word_embeddings": True}
    vision: Json = {"hidden_size": 384, "intermediate_size": 1536, "depth": 8, "num_heads": 6, "out_hidden_size": 512}
    vision |= {"patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": [1, 3, 5]}
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    tokens: Json = {name: ids[f"<|{token}|>"] for name, token in names.items()}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    mean, std = MEAN_AND_STD["qwen3-vl"]
    classes = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen3VLProcessor"}
    sizes = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    limits = {"size": {"shortest_edge": 4096, "longest_edge": 1_843_200}}
    write_json(
        folder / "preprocessor_config.json", {**classes, **sizes, **limits, "image_mean": mean, "image_std": std}
    )
    write_sentence_files(folder, 512)


def write_sentence_files(folder: Path, width: int) -> None:
    """What makes a language model an embedder for sentence-transformers."""
    prefix = "sentence_transformers"
    kinds = {
        "": f"{prefix}.base.modules.transformer.Transformer",
        "1_Pooling": f"{prefix}.sentence_transformer.modules.pooling.Pooling",
        "2_Normalize": f"{prefix}.base.modules.normalize.Normalize",
    }
    modules = [{"idx": idx, "name": str(idx), "path": path, "type": kinds[path]} for idx, path in enumerate(kinds)]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": width, "pooling_mode": "lasttoken"})
    state = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = {"text": state, "image": state, "message": {**state, "format": "structured"}}
    transformer = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    kwargs = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}
    write_json(folder / "sentence_bert_config.json", {**transformer, "modality_config": modalities, **kwargs})
    prompts = dict.fromkeys(("query", "document"), "Represent the user's input.")
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "cosine"})


BUILD: dict[str, Callable[[Path], None]] = {"clip": build_clip, "qwen3-vl": build_qwen3_vl}


def image_tokens(model: str, width: int, height: int) -> int:
    """Tokens of one image in the language model, or in CLIP's image tower."""
    return 7 * 7 + 1 if model == "clip" else round(width / 32) * round(height / 32)


# ---- peers


def pil_processor(model: str, **_: object) -> Any:
    """A checkpoint's processor that uses Pillow; without the part for videos, which needs torchvision."""
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPProcessor, Qwen3VLProcessor

    class ImagesOnly(Qwen3VLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: object) -> Any:
            is_video = argument_name == "video_processor"
            return None if is_video else super().check_argument_for_proper_class(argument_name, argument)

    tokenizer, images = AutoTokenizer.from_pretrained(model), AutoImageProcessor.from_pretrained(model, backend="pil")
    if AutoConfig.from_pretrained(model).model_type == "clip":
        return CLIPProcessor(images, tokenizer)
    return ImagesOnly(images, tokenizer, None, Path(model, "chat_template.jinja").read_text("utf-8"))


def load_sentence_transformers(model: str, batch_size: int) -> Encode:
    """The peer, with the same image processor as we have."""
    import sentence_transformers
    from PIL import Image

    with patch("sentence_transformers.base.modules.transformer.AutoProcessor.from_pretrained", pil_processor):
        loaded = sentence_transformers.SentenceTransformer(model, device="cpu", model_kwargs={"dtype": "float32"})

    def encode(paths: Sequence[Path]) -> NDArray[np.float32]:
        images = [Image.open(path) for path in paths]
        options: Json = {"batch_size": batch_size, "show_progress_bar": False, "normalize_embeddings": True}
        vectors: NDArray[np.float32] = loaded.encode_document(images, **options)
        return vectors

    return encode


def load_batchscore(model: str, batch_size: int) -> Encode:
    """Ourselves; packs are sized by tokens, so `batch_size` says nothing."""
    import batchscore

    loaded = batchscore.Scorer(model, dtype="float32", device="cpu", cache_mb=0)

    def encode(paths: Sequence[Path]) -> NDArray[np.float32]:
        urls = [path.absolute().as_uri() for path in paths]
        cells: Any = [{"content": [{"type": "image_url", "image_url": {"url": url}}]} for url in urls]
        vectors = np.asarray(loaded.encode(cells), np.float32)
        normalized: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return normalized

    return encode


PEERS = {"batchscore": load_batchscore, "sentence-transformers": load_sentence_transformers}


# ---- where the time goes


class Stages:
    """Seconds spent in wrapped functions, over all threads; time in an inner one does not count for the outer one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._thread = threading.local()
        self._lock = threading.Lock()

    def wrapped(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            outer, self._thread.inner = getattr(self._thread, "inner", 0.0), 0.0
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - begun
                with self._lock:
                    self.seconds[stage] += took - self._thread.inner
                self._thread.inner = outer + took

        return timed


@contextmanager
def timed_stages() -> Iterator[Stages]:
    """Decoding a file, making an image's pixels into the model's input, and the model itself."""
    import torch
    from PIL import Image, ImageFile
    from transformers import image_processing_utils

    stages = Stages()
    places = (
        ("decode", ImageFile.ImageFile, "load"),
        ("decode", Image.Image, "convert"),
        ("process", image_processing_utils.BaseImageProcessor, "__call__"),
        ("forward", torch.nn.Module, "__call__"),
    )
    patches = [patch.object(owner, name, stages.wrapped(stage, getattr(owner, name))) for stage, owner, name in places]
    for one in patches:
        one.start()
    try:
        yield stages
    finally:
        for one in patches:
            one.stop()


# ---- processes


def measure(args: argparse.Namespace) -> Json:
    """One peer, loaded, warmed up and timed, as a process of its own."""
    import torch

    torch.set_num_threads(args.threads)
    # other images than those that count: batchscore remembers what it saw
    paths = sorted(Path.cwd().glob("*.jpg"))
    first, paths = paths[:WARM_UP_IMAGES], paths[WARM_UP_IMAGES:]
    encode = PEERS[args.peer](str(args.folder), args.batch_size)
    encode(first)
    if args.profile:
        with timed_stages() as stages:
            seconds, vectors = clocked(encode, paths)
        return {"seconds": seconds, "stages": stages.seconds}
    seconds, vectors = clocked(encode, paths)
    return {"seconds": seconds, "vectors": vectors[:SHOWN_VECTORS].tolist()}


def clocked(encode: Encode, paths: Sequence[Path]) -> tuple[float, NDArray[np.float32]]:
    """Seconds, and what was made in them."""
    begun = time.perf_counter()
    vectors = encode(paths)
    return time.perf_counter() - begun, vectors


def run(peer: str, folder: Path, images: Path, args: argparse.Namespace, *more: str) -> Json:
    """What a peer's process found; it may read the images because they are in its working folder."""
    command = [sys.executable, __file__, args.model, "--peer", peer, "--folder", str(folder), *more]
    command += ["--threads", str(args.threads), "--batch-size", str(args.batch_size)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    process = subprocess.run(command, cwd=images, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"{peer} failed:\n{process.stderr[-2000:]}")
    found: Json = json.loads(process.stdout.splitlines()[-1])
    return found


def show(runs: Mapping[str, list[Json]], args: argparse.Namespace) -> None:
    """Medians, and what they are of the first peer's."""
    tokens = image_tokens(args.model, *args.size)
    first = next(iter(runs.values()))
    for peer, some in runs.items():
        seconds = [one["seconds"] for one in some]
        median = statistics.median(seconds)
        ratio = median / statistics.median(one["seconds"] for one in first)
        gap = np.abs(np.array(some[0]["vectors"]) - np.array(first[0]["vectors"])).max()
        speed = f"{args.images / median:7.1f} images/s, {args.images * tokens / median:8.0f} image tokens/s"
        print(f"{peer:22} {speed}, {median:.2f} s [{min(seconds):.2f}-{max(seconds):.2f}], {ratio:.2f}x, gap {gap:.1e}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""

    def size(text: str) -> tuple[int, int]:
        width, height = map(int, text.split("x"))
        return width, height

    parser = argparse.ArgumentParser(description="Images a second against sentence-transformers.")
    parser.add_argument("model", choices=BUILD)
    parser.add_argument("--peers", default=",".join(PEERS), help="in the order in which they take turns")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=size, default=(640, 480), metavar="WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="of sentence-transformers")
    parser.add_argument("--profile", action="store_true", help="say where the time went")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(args: argparse.Namespace) -> None:
    """Run the peers in turns and print the table."""
    import torch

    torch.manual_seed(0)
    runs: dict[str, list[Json]] = {peer: [] for peer in args.peers.split(",")}
    with tempfile.TemporaryDirectory() as parent:
        folder, images = Path(parent) / "model", Path(parent) / "images"
        BUILD[args.model](folder)
        write_images(images, WARM_UP_IMAGES + args.images, *args.size)
        for number in range(args.rounds):
            for peer, some in runs.items():
                some.append(run(peer, folder, images, args))
                print(f"round {number + 1}: {peer} {some[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        show(runs, args)
        for peer in runs if args.profile else ():
            found = run(peer, folder, images, args, "--profile")
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in sorted(found["stages"].items()))
            print(f"{peer:22} wall {found['seconds']:.2f} s: {stages}")


def main() -> None:
    """Compare, or be one of those who are compared."""
    args = parse_arguments()
    if not args.peer:
        compare(args)
        return
    # libraries print to descriptor 1: keep the real one for the result alone
    with os.fdopen(os.dup(1), "w") as result:
        os.dup2(2, 1)
        print(json.dumps(measure(args)), file=result)


if __name__ == "__main__":
    main()
