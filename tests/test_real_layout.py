"""`mars2 run --suite lorarar --model DIR` on a folder with SDXL's real layout, at small width.

The UNet has SDXL's blocks (2 layers a block, 1, 2 and 10 transformer layers, 560 attention
projections), the autoencoder SDXL's four levels, the images their 1024 pixels. The LoRA files are
spelled as PEFT and as kohya spell them. The judge, CLIP and DINO are the miniature's.
"""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from baselines.dreambooth import attention_layers
from baselines.formats.layout import to_original
from benchmark_data.load import load_suite
from mars2.cli import main

SUBJECT, STYLE = "can", "3d_rendering4"  # the first test pair, which --limit 1 takes


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "sdxl"
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        pipe.register_modules(
            unet=UNet2DConditionModel(
                sample_size=128,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(8, 16, 32),
                layers_per_block=2,
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(1, 1, 2),
                norm_num_groups=8,
                cross_attention_dim=40,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 24,
            ),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                sample_size=1024,
                scaling_factor=0.13025,
            ),
        )
    pipe.save_pretrained(folder)
    return folder


def lora_files(folder: Path, pipeline: Path) -> None:
    """A subject LoRA in PEFT's spelling and a style LoRA in kohya's with an alpha."""
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
    layers = attention_layers(unet)
    assert len(layers) == 560
    generator = torch.Generator().manual_seed(1)
    subject, style = {}, {}
    for layer in layers:
        d_out, d_in = unet.get_submodule(layer).weight.shape
        down, up = (
            torch.randn(4, d_in, generator=generator),
            torch.randn(d_out, 4, generator=generator),
        )
        subject[f"unet.{layer}.lora_A.weight"] = down / d_in
        subject[f"unet.{layer}.lora_B.weight"] = up
        down, up = (
            torch.randn(2, d_in, generator=generator),
            torch.randn(d_out, 2, generator=generator),
        )
        stem = f"lora_unet_{(to_original(layer) or '').replace('.', '_')}"
        style[f"{stem}.lora_down.weight"] = down / d_in
        style[f"{stem}.lora_up.weight"] = up
        style[f"{stem}.alpha"] = torch.tensor(1.0)
    folder.mkdir()
    save_file(subject, folder / f"{SUBJECT}.safetensors")
    save_file(style, folder / f"{STYLE}.safetensors")


@pytest.mark.slow
def test_the_papers_suite_runs_scores_and_reports(
    pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache, adapters, out = tmp_path / "cache", tmp_path / "adapters", tmp_path / "run"
    monkeypatch.setenv("MARS2_CACHE", str(cache))
    suite, miniature = load_suite("lorarar"), load_suite("miniworld")
    case = suite.cases["test"][0]
    assert (case.subject.id, case.style.id) == (SUBJECT, STYLE)
    for number, concept in enumerate((case.subject, case.style)):
        for index, reference in enumerate(concept.references):
            path = cache / "references" / "lorarar" / concept.id / reference.file
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = (40 * index, 200 - 30 * index, 90 * number)
            Image.new("RGB", (600, 500), colour).save(path)
    lora_files(adapters, pipeline)
    arguments = f"run --suite lorarar --model {pipeline} --adapters {adapters} --out {out}"
    arguments += " --method direct_sum --limit 1 --seeds 0 --steps 1 --device cpu --dtype float32"
    arguments += f" --judge {miniature.models.judge} --clip {miniature.models.clip}"
    arguments += f" --dino {miniature.models.dino}"
    monkeypatch.setattr("sys.argv", ["mars2", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    output = capsys.readouterr()
    assert stop.value.code in (0, None), output.err
    images = sorted(path.relative_to(out / "images") for path in out.rglob("images/**/*.png"))
    case_id = f"{SUBJECT}_{STYLE}"
    methods = ("base", "direct_sum", "style_only", "subject_only")
    assert images == [Path(method) / case_id / "0.png" for method in methods]
    drawn = {path.parts[0]: (out / "images" / path).read_bytes() for path in images}
    assert len(set(drawn.values())) == 4
    with Image.open(out / "images" / images[0]) as image:
        assert image.size == (1024, 1024)
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert len(records) == 4 * 8  # mars2, its two parts, three of CLIP, two of DINO
    for name in ("scores.json", "report.html", "grid.png"):
        assert (out / name).stat().st_size > 0
    assert "direct_sum" in output.out
