"""The T5 family: its encoder gives vectors, and monoT5 answers a prompt with the first token of its decoder."""

from __future__ import annotations

from dataclasses import replace

from batchscore.models.arch.entry import Architecture, Entry

# flat=False: a token's relative position would be counted from one sequence to the next
_ENCODER = Architecture(flat=False, pooling="mean", unread=r"^decoder\.")
_MONO = replace(_ENCODER, score_type="cross-encoder", per_sequence="decoder", template="monot5")
_TRUE, _YES = ("▁false", "▁true"), ("▁no", "▁yes")

ENCODER_DECODERS: dict[str, Entry] = {
    "T5EncoderModel": replace(_ENCODER, hub="sentence-transformers/sentence-t5-base"),
    "T5ForConditionalGeneration": replace(_MONO, hub="castorini/monot5-base-msmarco", answers=_TRUE),
    "MT5ForConditionalGeneration": replace(_MONO, hub="unicamp-dl/mt5-base-mmarco-v2", answers=_YES),
    **dict.fromkeys(("T5Model", "MT5EncoderModel", "UMT5EncoderModel"), _ENCODER),
}
