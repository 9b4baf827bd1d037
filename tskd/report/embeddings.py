"""Embed texts by a model of the user's choice, to measure their distance."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.functional import normalize
from transformers import AutoModel

from tskd.errors import ModelError, one_line
from tskd.models.checkpoint import Checkpoint
from tskd.models.weights import Weights
from tskd.report.statistics import Values

BATCH = 32
LONGEST = 512  # tokens; the rest of a text is not looked at


@dataclass(frozen=True)
class Embedder:
    """Make unit vectors of texts (N, H) from a model's mean last hidden states.

    That is Sentence-BERT's pooling (Reimers & Gurevych 2019, arXiv 1908.10084), whatever the model's own is. ``path``
    is a folder or a hub id.
    """

    path: str

    @property
    def name(self) -> str:
        return Path(self.path).name if Path(self.path).is_dir() else self.path

    def __call__(self, texts: Sequence[str]) -> Values:
        device, tokenizer = self._model.device, self._weights.tokenizer
        tokenizer.padding_side = "right"  # where a decoder's positions are not moved by it
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        longest = min(LONGEST, self._weights.max_length or LONGEST)
        vectors = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
            ids, mask = tokens["input_ids"], tokens["attention_mask"]  # (B, T); not every model takes the rest
            with torch.inference_mode():
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (B, T, H)
            vectors.append(normalize((hidden * mask.unsqueeze(-1)).sum(1), dim=-1).cpu())
        return np.asarray(torch.cat(vectors).double().numpy())

    @cached_property
    def _weights(self) -> Weights:
        return Weights(Checkpoint(self.name, self.path))

    @cached_property
    def _model(self) -> Any:
        if self._weights.config.is_encoder_decoder:
            raise ModelError(f"Model {self.name!r} is an encoder and a decoder; embed by a model that is one of them.")
        self._weights.check_loadable()
        try:
            model = AutoModel.from_pretrained(self._weights.folder, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise ModelError(f"Model {self.name!r} at {self.path}: {one_line(error)}") from error
        return model.eval().to(torch.accelerator.current_accelerator() or "cpu")
