"""The decoder: a small Llama that says in words what the findings state and the patch tokens show.

    patch tokens (N, D) -> projector (two layers, LLaVA's) -> N input embeddings in place of <image>
    prompt ids -> token embeddings --------------------------^  -> Llama with key-value cache -> text

It decides nothing: probabilities and verdicts come in with the prompt (`prompt.py`). On disk it is a plain Hugging Face
folder `decoder/` (LlamaForCausalLM, tied embeddings, tokenizer) beside `projector.safetensors`; `export.py` writes both
as one model for plain transformers. `text_writer.py` makes text of logits; batching is the server's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foundation.decoder_folder import (
    DECODER_FOLDER,
    PROJECTOR_FILE,
    bind_strictly,
    copy_tokenizer,
    decoder_fingerprint,
    projected_width,
    read_settings,
    read_tensors,
    write_json,
)
from foundation.errors import InvalidRequest
from foundation.prompt import FindingState, PromptTokenizer, Turn, findings_text
from foundation.sampling import Sampling, SamplingOptions
from foundation.text_writer import Completion, TextWriter


@dataclass(frozen=True)
class DecoderShape:
    """The size of a new decoder; `image_width` is the width D of the image tower's patch tokens."""

    image_width: int
    vocab_size: int
    width: int = 256
    layers: int = 6
    heads: int = 4
    key_value_heads: int = 2
    mlp_width: int = 512
    context: int = 1024


class Projector(nn.Module):
    """Patch tokens (..., D) -> decoder embeddings (..., W); names and order are LLaVA's multi_modal_projector."""

    def __init__(self, image_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(image_width, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.linear_2(self.act(self.linear_1(tokens)))
        return projected


class Decoder(nn.Module):
    """Language model, projector and tokenizer. Built by `create` or `load`; weights are float32 in memory until `compute_in`.

    fingerprint: SHA-256 over the files it was loaded from ("" before it was saved); chat adapters name the one they
    were made for.
    """

    def __init__(self, model: Any, projector: Projector, tokenizer: PromptTokenizer, fingerprint: str = "") -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.model = model
        self.projector = projector
        self.tokenizer = tokenizer
        self.end_id = tokenizer.special_ids["[EOS]"]
        self.image_id = tokenizer.special_ids["<image>"]

    @property
    def image_width(self) -> int:
        return self.projector.linear_1.in_features

    @property
    def device(self) -> torch.device:
        return next(self.projector.parameters()).device

    @property
    def context(self) -> int:
        """The longest prompt plus answer, in tokens."""
        return int(self.model.config.max_position_embeddings)

    @classmethod
    def create(cls, shape: DecoderShape, tokenizer_file: Path) -> Decoder:
        """A decoder with random weights; the vocabulary is the tokenizer's."""
        from transformers import LlamaForCausalLM

        tokenizer = PromptTokenizer(tokenizer_file)
        if tokenizer.vocab_size != shape.vocab_size:
            raise InvalidRequest(
                f"The tokenizer has {tokenizer.vocab_size} tokens but vocab_size is {shape.vocab_size}.", param="vocab_size"
            )
        model = LlamaForCausalLM(_llama_config(shape, tokenizer))
        return cls(model, Projector(shape.image_width, shape.width), tokenizer).eval()

    @classmethod
    def load(cls, folder: Path) -> Decoder:
        """Open `folder/decoder` and `folder/projector.safetensors`; refuses anything executable, missing or left over."""
        from transformers import LlamaConfig, LlamaForCausalLM

        inner = folder / DECODER_FOLDER
        settings = read_settings(inner)
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**settings))
        weights = read_tensors(inner / "model.safetensors")
        weights.setdefault("lm_head.weight", weights.get("model.embed_tokens.weight", torch.empty(0)))
        model = model.to_empty(device="cpu")
        bind_strictly(model, weights, inner / "model.safetensors")
        model.tie_weights()
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # NOTE: its buffers are not on disk
        tensors = read_tensors(folder / PROJECTOR_FILE)
        projector = Projector(projected_width(tensors, folder), model.config.hidden_size)
        bind_strictly(projector, tensors, folder / PROJECTOR_FILE)
        return cls(model, projector, PromptTokenizer(inner / "tokenizer.json"), decoder_fingerprint(folder)).eval()

    def compute_in(self, dtype: torch.dtype) -> None:
        """Convert all weights in place; not the table of angles, which needs its digits."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write `decoder/` and the projector; the tied output embedding is written once."""
        inner = folder / DECODER_FOLDER
        inner.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.to(dtype).contiguous() for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        save_file(tensors, inner / "model.safetensors", metadata={"format": "pt"})
        projector = {name: value.to(dtype).contiguous() for name, value in self.projector.state_dict().items()}
        save_file(projector, folder / PROJECTOR_FILE, metadata={"format": "pt"})
        config = {**self.model.config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": str(dtype)[6:]}
        config.pop("_name_or_path", None)
        write_json(inner / "config.json", config)
        write_json(inner / "generation_config.json", self.generation_config())
        copy_tokenizer(self.tokenizer.file, inner)

    def lora_targets(self) -> list[str]:
        """Names, inside `model`, of the linear maps LoRA may adapt: those of the blocks, not the tied output."""
        return [f"model.{name}" for name, module in self.model.model.named_modules() if isinstance(module, nn.Linear)]

    def generation_config(self) -> dict[str, Any]:
        """What makes plain transformers' greedy `generate` choose as `generate` here does."""
        special = self.tokenizer.special_ids
        return {
            "bos_token_id": special["[BOS]"],
            "eos_token_id": self.end_id,
            "pad_token_id": special["[PAD]"],
            "suppress_tokens": list(self.tokenizer.silent_ids),
            "do_sample": False,
        }

    def prompt_ids(
        self, turns: Sequence[Turn], findings: Sequence[FindingState] | None, image_tokens: int, *, reserve: int = 1
    ) -> list[int]:
        """The prompt, without its oldest turns where all of them and `reserve` new tokens would not fit.

        Without a film (`image_tokens` 0) nothing is said about findings.
        """
        stated = findings_text(findings) if image_tokens else None
        kept = list(turns)
        while True:
            ids = self.tokenizer.prompt(kept, stated, image_tokens)
            if len(ids) + reserve <= self.context:
                return ids
            if len(kept) < 3:
                raise InvalidRequest(
                    f"The question is too long: {len(ids)} tokens and {reserve} for the answer, "
                    f"where {self.context} fit. Shorten it or ask for fewer max_tokens.",
                    param="messages",
                )
            kept = kept[2:]

    def embed(self, ids: Sequence[int], patch_tokens: Tensor | None) -> Tensor:
        """(1, T, W) input embeddings: the patch tokens (N, D), projected, stand where the ids say <image>."""
        row = torch.tensor(list(ids), device=self.device)
        embedded: Tensor = self.model.get_input_embeddings()(row)
        is_image = row == self.image_id
        if patch_tokens is not None:
            if int(is_image.sum()) != len(patch_tokens):
                raise InvalidRequest(
                    f"The prompt has room for {int(is_image.sum())} patch tokens but {len(patch_tokens)} were given."
                )
            embedded = embedded.masked_scatter(is_image[:, None], self.projector(patch_tokens.to(embedded.dtype)))
        return embedded[None]

    def stream(
        self,
        turns: Sequence[Turn],
        findings: Sequence[FindingState] | None,
        patch_tokens: Tensor | None,
        sampling: SamplingOptions | None = None,
    ) -> Iterator[str | Completion]:
        """Pieces of text as they become certain, and a Completion last. `patch_tokens` (N, D); None without a film."""
        sampling = sampling or Sampling()
        image_tokens = 0 if patch_tokens is None else len(patch_tokens)
        ids = self.prompt_ids(turns, findings, image_tokens)
        writer = TextWriter(self.tokenizer, sampling, len(ids), room=self.context - len(ids))
        for logits in self._steps(ids, patch_tokens, writer):
            piece = writer.push(logits)
            if piece:
                yield piece
            if writer.finish_reason:
                break
        yield writer.completion()

    def generate(
        self,
        turns: Sequence[Turn],
        findings: Sequence[FindingState] | None,
        patch_tokens: Tensor | None,
        sampling: SamplingOptions | None = None,
    ) -> Completion:
        """The whole answer at once."""
        completion = [item for item in self.stream(turns, findings, patch_tokens, sampling) if isinstance(item, Completion)]
        return completion[-1]

    @torch.inference_mode()
    def score(self, ids: Sequence[int], answer_ids: Sequence[int], pictures: Tensor) -> Tensor:
        """(B,) mean log-probability of the same answer to the same prompt, given each of `pictures` (B, N, D).

        Reliance: a picture, a blank and a shuffled one, scored together.
        """
        answer = torch.tensor(list(answer_ids), device=pictures.device)
        prompts = torch.cat([self.embed(ids, picture) for picture in pictures])
        said = self.model.get_input_embeddings()(answer)[None].expand(len(pictures), -1, -1)
        logits = self.model(inputs_embeds=torch.cat([prompts, said], 1), use_cache=False).logits[:, len(ids) - 1 : -1]
        chosen = logits.float().log_softmax(-1).gather(2, answer[None, :, None].expand(len(pictures), -1, 1))
        scores: Tensor = chosen.squeeze(2).mean(1)
        return scores

    def _steps(self, ids: Sequence[int], patch_tokens: Tensor | None, writer: TextWriter) -> Iterator[Tensor]:
        """Logits (V,) for the next token, again and again; the token chosen is read back from the writer."""
        with torch.inference_mode():
            out = self.model(inputs_embeds=self.embed(ids, patch_tokens), use_cache=True, logits_to_keep=1)
        while True:
            yield out.logits[0, -1]
            newest = torch.tensor([[writer.token_ids[-1]]], device=out.logits.device)
            with torch.inference_mode():
                out = self.model(input_ids=newest, past_key_values=out.past_key_values, use_cache=True)


def _llama_config(shape: DecoderShape, tokenizer: PromptTokenizer) -> Any:
    from transformers import LlamaConfig

    special = tokenizer.special_ids
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.mlp_width,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=special["[BOS]"],
        eos_token_id=special["[EOS]"],
        pad_token_id=special["[PAD]"],
    )
