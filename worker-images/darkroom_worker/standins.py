"""Stand-ins: small models of the architectures of `flux` and `sd`, with random weights, made here in seconds.

Everything but the content of the pictures is real, on a machine without a GPU and without a download: the pipelines,
the parameters, the steps, the sizes, and the relative time of a step. The pictures are coloured noise.

`python -m darkroom_worker.standins FOLDER` makes, or verifies:

| path below FOLDER | content |
|---|---|
| `flux-standin/`, `sd-standin/` | the weights, as `from_pretrained` reads them; their README calls them untrained |
| `models/flux.toml`, `models/sd.toml` | the model files that serve them instead of the real ones |

A folder is made in a temporary folder and then renamed, so that a killed run leaves no partial folder. A stamp in it
has the digests of this recipe and of the content: a folder that matches is kept, any other is made again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom_worker.engines.registry import quiet_libraries
from darkroom_worker.engines.weights import fingerprint

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline
    from torch.nn import Module
    from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast

STAMP = "standin.json"
"""The file in a stand-in's folder with the digests of the recipe and of the content."""

SCRATCH = ".making-"
"""The prefix of temporary folders."""

WEIGHTS_SEED = 20261120
"""The same weights on every machine. The number, a date, has no meaning."""

WIDTH = 32
"""Features of a text token, and of every layer that reads the prompt."""

PROMPT_TOKENS = 77
"""Tokens of a prompt that a CLIP text encoder reads, as in the real models; here a token is one byte."""

VAE_CHANNELS = (8, 8, 16, 16)
"""Channels of the picture decoder, from the full size to an eighth of it. With so few, decoding the million pixels of
an 832×1216 picture takes less than a second."""

SD_PROMPT_GAIN = 20.0
SD_OUTPUT_GAIN = 3.0
FLUX_PROMPT_GAIN = 4.0
"""With random weights the prompt has hardly any effect: two prompts differ by one level of 255. Multiplied by these
factors (found by trial), the difference is visible, and the pictures are neither black nor white."""

README = """\
---
library_name: diffusers
tags: [untrained, random-weights, stand-in]
---
# {title}

**These weights are untrained.** They are random numbers from a fixed seed in a small model of the architecture of
`{model}` ({pipeline}): its pictures are coloured noise, which depends on prompt, seed and parameters as a real model's
do. They replace real weights that are not available, and every result and every PNG names them (`model_served`).

A token is one byte of the prompt. Made by `python -m darkroom_worker.standins`; nothing was downloaded or trained.
"""

MODEL_FILE = """\
# Made by `python -m darkroom_worker.standins`: {model} from untrained weights on this machine.
extends = {model_text}
pool = "local"
source = {source_text}
served_as = {title_text}
"""


@dataclass(frozen=True)
class StandIn:
    """A stand-in for one model of the catalogue: which pipeline, and how to build it."""

    model: str
    pipeline: str
    build: Callable[[], DiffusionPipeline]

    @property
    def folder(self) -> str:
        return f"{self.model}-standin"

    @property
    def title(self) -> str:
        """Its name in `model_served`."""
        return f"{self.model} stand-in, untrained weights"


@dataclass(frozen=True)
class InstalledStandIn:
    """A stand-in in its folder. `is_new`: made by this call."""

    stand_in: StandIn
    folder: Path
    model_file: Path
    is_new: bool


def make_stand_ins(folder: Path) -> tuple[InstalledStandIn, ...]:
    """Make in `folder`, which is created if needed, every stand-in that is missing or does not match its stamp.

    Idempotent, and safe to run concurrently. Raises `OSError` if the folder is not writable.
    """
    models = folder.resolve() / "models"
    models.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        return tuple(_make_one(stand_in, folder.resolve(), models) for stand_in in STAND_INS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the stand-ins and print the folder of each."""
    parser = argparse.ArgumentParser(prog="python -m darkroom_worker.standins", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder for the stand-ins and their model files")
    for made in make_stand_ins(parser.parse_args(arguments).folder):
        verb = "made" if made.is_new else "already present"
        sys.stdout.write(f"{made.stand_in.title}: {verb}, {made.folder}\n")
    return 0


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock `folder`, and delete the temporary folders of a killed run."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left_behind in folder.glob(SCRATCH + "*"):
            shutil.rmtree(left_behind)
        yield


def _make_one(stand_in: StandIn, folder: Path, models: Path) -> InstalledStandIn:
    place, model_file = folder / stand_in.folder, models / f"{stand_in.model}.toml"
    text = MODEL_FILE.format(
        model=stand_in.model,
        model_text=_toml(stand_in.model),
        source_text=_toml(str(place)),
        title_text=_toml(stand_in.title),
    )
    is_new = not _matches_stamp(place)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as name:
        scratch = Path(name)
        if is_new:
            _write_weights(stand_in, scratch / "new")
            if place.exists():
                place.rename(scratch / "old")
            (scratch / "new").rename(place)
        if not model_file.exists() or model_file.read_bytes() != text.encode():
            (scratch / model_file.name).write_bytes(text.encode())
            (scratch / model_file.name).replace(model_file)
    return InstalledStandIn(stand_in=stand_in, folder=place, model_file=model_file, is_new=is_new)


def _toml(text: str) -> str:
    """A TOML basic string: JSON's strings are also TOML's."""
    return json.dumps(text, ensure_ascii=False)


def _write_weights(stand_in: StandIn, folder: Path) -> None:
    quiet_libraries()
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED)
        stand_in.build().save_pretrained(folder, safe_serialization=True)
    readme = README.format(title=stand_in.title.capitalize(), model=stand_in.model, pipeline=stand_in.pipeline)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (folder / STAMP).write_text(json.dumps(_stamp(folder)))


def _matches_stamp(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / STAMP).read_text()) == _stamp(folder))
    except (OSError, ValueError):
        return False


def _stamp(folder: Path) -> dict[str, str]:
    return {
        "recipe": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "content": fingerprint(folder, without={STAMP}),
    }


# The recipes. The configurations have the shape of the real models' without the attention at full latent size, which
# would be slow: 832×1216 has 15808 latent positions.


def _stable_diffusion() -> DiffusionPipeline:
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=64,
        layers_per_block=1,
        block_out_channels=(16, 16, 32),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    _amplify(unet, "attn2.to_out", by=SD_PROMPT_GAIN)
    _amplify(unet, "conv_out", by=SD_OUTPUT_GAIN)
    return StableDiffusionPipeline(
        vae=_vae(latent_channels=4),
        text_encoder=_clip_encoder(),
        tokenizer=_clip_tokenizer(),
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _flux() -> DiffusionPipeline:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    _amplify(transformer, "text_embedder", "to_add_out", by=FLUX_PROMPT_GAIN)
    tokenizer = _byte_tokenizer()
    text_encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=8,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=_clip_encoder(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=text_encoder,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )


STAND_INS = (
    StandIn(model="flux", pipeline="FluxPipeline", build=_flux),
    StandIn(model="sd", pipeline="StableDiffusionPipeline", build=_stable_diffusion),
)


def _amplify(module: Module, *parts: str, by: float) -> None:
    """Multiply the weights whose name contains one of `parts`."""
    for name, weights in module.named_parameters():
        if any(part in name for part in parts):
            weights.data.mul_(by)


def _vae(*, latent_channels: int, **settings: float) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        block_out_channels=VAE_CHANNELS,
        latent_channels=latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **settings,
    )


def _clip_encoder() -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _clip_tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without merges: a token is a byte, or a byte that ends a word."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=PROMPT_TOKENS)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """A replacement for T5's tokenizer, which needs a trained vocabulary: a token is a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *_byte_letters()]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _byte_letters() -> list[str]:
    """The character of each byte in byte-level vocabularies, as assigned by GPT-2.

    Printable bytes are represented by themselves, the others by the characters from U+0100 on.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


if __name__ == "__main__":
    # An init container runs it as process 1, for which the kernel drops SIGTERM unless the process handles it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise SystemExit(main())
