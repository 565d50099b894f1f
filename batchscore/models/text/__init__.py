"""Texts into token sequences: tokenizer, prompts, templates, truncation."""
