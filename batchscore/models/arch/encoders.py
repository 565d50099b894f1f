"""Bidirectional encoders that transformers has natively.

A row says how the head is cut off the body and how positions count.
"""

from __future__ import annotations

from dataclasses import replace

from batchscore.models.spec import Row

# BERT keeps the dense + tanh of its head in the body, as the "pooler"; RoBERTa's classifier holds both layers
_BERT = Row(head=("bert.pooler", "classifier"), layers="encoder.layer")
_ROBERTA = Row(head=("classifier",), layers="encoder.layer", positions_after_pad=True)

ENCODERS: dict[str, Row] = {
    "BertForSequenceClassification": _BERT,
    "RobertaForSequenceClassification": _ROBERTA,
    "XLMRobertaForSequenceClassification": _ROBERTA,
    "BertModel": replace(_BERT, head=()),
    "BertForMaskedLM": replace(_BERT, head=()),
    "RobertaModel": replace(_ROBERTA, head=()),
    "RobertaForMaskedLM": replace(_ROBERTA, head=()),
    "XLMRobertaModel": replace(_ROBERTA, head=()),
    "XLMRobertaForMaskedLM": replace(_ROBERTA, head=()),
}
