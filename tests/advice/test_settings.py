"""Advice about settings: what is refused is accepted when said as advised. Nothing runs; command lines are read."""

import dataclasses

import pytest
from advicekit import FOLLOWED, matches, parsed

from groundling.align.preferences.simulated_rater import SimulatedRater
from groundling.config import load_preset
from groundling.data.batches import Batches
from groundling.errors import GroundlingError
from groundling.system.runtime import RuntimeConfig, _pick_dtype
from groundling.train.settings import PretrainConfig

SETTINGS = [
    ("give either --rankings or --preferences", "dpo b", ["dpo b --rankings r.sqlite", "dpo b --preferences p.jsonl"]),
    (
        "give either --rankings or --preferences",
        "dpo b --rankings r.sqlite --preferences p.jsonl",
        ["dpo b --rankings r.sqlite"],
    ),
    (
        "gold is given with preferences, which no simulated rater made; leave one of them out",
        "reward b --gold verse --preferences p.jsonl",
        ["reward b --gold verse --rankings r.sqlite", "reward b --preferences p.jsonl"],
    ),
    (
        'it is empty; give a path ("." is this folder)',
        "pretrain --out-dir=",
        ["pretrain --out-dir .", "pretrain --out-dir runs/mine"],
    ),
    (
        "replies {} is not a multiple of group {}; change one",
        "grpo b --reward r --replies 12 --group 8",
        ["grpo b --reward r --replies 16 --group 8", "grpo b --reward r --replies 12 --group 6"],
    ),
    (
        "replies {} is not a multiple of minibatches {}; change one",
        "ppo b --reward r --replies 9 --minibatches 2",
        ["ppo b --reward r --replies 8 --minibatches 2", "ppo b --reward r --replies 9 --minibatches 3"],
    ),
    ("seeds are {}; give at least one, all different", "chatgpt b --seeds 1 1", ["chatgpt b --seeds 1 2"]),
    ("seeds are {}; give at least one, all different", "align-report sft --seeds 3 3", ["align-report sft --seeds 3"]),
    (
        "give either --candidates FILE or --bundles A B --prompts FILE",
        "rank a.sqlite",
        ["rank a.sqlite --candidates c.jsonl", "rank a.sqlite --bundles x y --prompts p.jsonl"],
    ),
    (
        "--bundles and --prompts come together",
        "rank a.sqlite --bundles x y",
        ["rank a.sqlite --bundles x y --prompts p.jsonl"],
    ),
    (
        "rater is empty; give a name, or leave --rater out to use the user name",
        "rank a.sqlite --candidates c.jsonl --rater=",
        ["rank a.sqlite --candidates c.jsonl"],
    ),
    (
        "data.path is empty; give a file, a folder or a glob, or leave it out",
        "pretrain --data.path=",
        ["pretrain --data.path my.txt", "pretrain --data.path texts", "pretrain --data.path t/*.txt", "pretrain"],
    ),
    (
        "teacher.{} is given and teacher.weight is 0; set the weight",
        "pretrain --teacher.models a b",
        ["pretrain --teacher.models a b --teacher.weight 0.5"],
    ),
    (
        "n_embd {} is not a multiple of n_head {}; change one, or give head_size",
        "pretrain --model.n-head 3",
        [
            "pretrain --model.n-head 4",
            "pretrain --model.n-head 3 --model.n-embd 192",
            "pretrain --model.n-head 3 --model.head-size 64",
        ],
    ),
    (
        "n_head {} is not a multiple of n_kv_head {}; change one",
        "pretrain --model.n-head 4 --model.n-kv-head 3",
        ["pretrain --model.n-head 4 --model.n-kv-head 2", "pretrain --model.n-head 8 --model.n-kv-head 4"],
    ),
    (
        "a nanoGPT checkpoint does not say its tokenizer in a way that is safe to read; give either --text (the file "
        "whose characters it was trained on) or --tokenizer (gpt2, or a folder with a tokenizer.json)",
        "import nanogpt ckpt.pt out",
        ["import nanogpt ckpt.pt out --text t.txt", "import nanogpt ckpt.pt out --tokenizer gpt2"],
    ),
    (
        "a draft model guesses tokens ahead; say how many with --speculate",
        "sample b --draft d",
        ["sample b --draft d --speculate 4"],
    ),
    ("no model was given; groundling serve RUN_OR_BUNDLE", "serve", ["serve runs/mine", "serve a=runs/mine"]),
    (
        "cors_origins cannot be *; name the allowed origins",
        "serve b --cors-origins *",
        ["serve b --cors-origins https://pages.example"],
    ),
    ("rungs is empty; name some, for example s3,s4", "ladder --rungs=", ["ladder --rungs s3,s4"]),
    (
        "resume continues a run and overwrite removes it; choose one",
        "pretrain --resume --overwrite",
        ["pretrain --resume", "pretrain --overwrite"],
    ),
    (
        "init_from is empty; give a bundle, a checkpoint or a run, or leave it out",
        "pretrain --init-from=",
        ["pretrain --init-from {run}", "pretrain --init-from {run}/bundle", "pretrain"],
    ),
    (
        "zero_init is for new weights, and init_from brings trained ones; choose one",
        "pretrain --init-from {run} --zero-init",
        ["pretrain --init-from {run}", "pretrain --zero-init"],
    ),
    ("seeds is empty; give one or more", "speedrun --seeds", ["speedrun --seeds 1 2"]),
    (
        "no preset {}; give the path of a TOML file, or one of: {}",
        "pretrain nowhere.toml",
        ["pretrain {run}/run.toml", "pretrain speedrun.toml"],
    ),
    (
        "{} is not a preset, a TOML file; if it is a text, give --data.path before it",
        "pretrain my.txt",
        ["pretrain --data.path my.txt"],
    ),
    ("no run was given; name at least one run's folder", "plot", ["plot {run}"]),
    (
        "lora.alpha needs lora.rank",
        "sft b --lora.alpha 16",
        ["sft b --lora.alpha 16 --lora.rank 8"],
    ),
    ("data.val_path needs data.path", "sft b --data.val-path v", ["sft b --data.val-path v --data.path t"]),
    ("patience needs eval_every", "pretrain --patience 2 --eval-every None", ["pretrain --patience 2"]),
    ("no verb {}; {}", "pertrain", ["pretrain"]),
]
FOLLOWED.update(template for template, _, _ in SETTINGS)


def words_of(line: str, run: object) -> list[str]:
    return [word.format(run=run) if "{run}" in word else word for word in line.split()]


@pytest.mark.parametrize(("template", "refused", "advised"), SETTINGS, ids=[refused for _, refused, _ in SETTINGS])
def test_what_is_refused_is_accepted_when_said_as_advised(template, refused, advised, finished_run):
    if refused == "pertrain":
        from groundling.cli import VERBS
        from groundling.errors import near_name

        assert near_name("pertrain", VERBS, "the verbs are") == "did you mean 'pretrain'?"
    else:
        with pytest.raises(GroundlingError) as caught:
            parsed(words_of(refused, finished_run))
        assert matches(template, str(caught.value)), str(caught.value)
    for line in advised:
        assert parsed(words_of(line, finished_run)) is not None, line


# Settings that are only known to be wrong when something else is known.

LATER = [
    "batch_size {} does not divide over {} ranks; make it a multiple of {}",
    "micro_batch_size {} does not divide the {} sequences of a rank's step; change one",
    "a judge's noise must be a number of at least 0, not {}; choose one",
    "mps has no float64; take --runtime.dtype float32, or --runtime.device cpu",
    "{} is reachable from other machines, and no key is set; give --api-key-file, or listen on 127.0.0.1",
    "{} holds no key; write one per line",
]
FOLLOWED.update(LATER)


def refused_as(template, function):
    with pytest.raises(GroundlingError) as caught:
        function()
    assert matches(template, str(caught.value)), str(caught.value)


def test_sizes_of_batches():
    def batches(**sizes):
        return Batches(range(100), block_size=4, **sizes)

    refused_as(LATER[0], lambda: batches(batch_size=9, world_size=2))
    assert batches(batch_size=10, world_size=2)
    refused_as(LATER[1], lambda: batches(batch_size=9, micro_batch_size=2))
    assert batches(batch_size=9, micro_batch_size=3)
    assert batches(batch_size=8, micro_batch_size=2)


def test_the_noise_of_a_judge():
    refused_as(LATER[2], lambda: SimulatedRater(len, -1.0, 0))
    assert SimulatedRater(len, 0.0, 0)


def test_float64_where_there_is_none():
    import torch

    settings = parsed(["pretrain", "--runtime.dtype", "float64", "--runtime.device", "mps"])
    mps = torch.device("mps")
    refused_as(LATER[3], lambda: _pick_dtype(settings.runtime, mps, {}))
    assert _pick_dtype(parsed(["pretrain", "--runtime.dtype", "float32"]).runtime, mps, {})
    cpu = parsed(["pretrain", "--runtime.dtype", "float64", "--runtime.device", "cpu"]).runtime
    assert isinstance(cpu, RuntimeConfig)
    assert _pick_dtype(cpu, torch.device("cpu"), {})


def test_a_server_for_other_machines(tmp_path):
    refused_as(LATER[4], lambda: parsed(["serve", "b", "--host", "0.0.0.0"]).require_safe())
    parsed(["serve", "b", "--host", "127.0.0.1"]).require_safe()
    keys = tmp_path / "keys"
    keys.write_text("# none yet\n", encoding="utf-8")
    words = ["serve", "b", "--host", "0.0.0.0", "--api-key-file", str(keys)]
    refused_as(LATER[5], lambda: parsed(words).require_safe())
    keys.write_text("correct-horse-battery\n", encoding="utf-8")
    parsed(words).require_safe()


# A preset for the speedrun.

RECIPES = {
    "{} has teacher.models, whose cost is not known here; name teacher.recipes": (
        '[teacher]\nweight = 0.5\nmodels = ["a"]\n',
        '[teacher]\nweight = 0.5\nrecipes = ["speedrun"]\n',
    ),
    "{} has init_from, whose cost is not known here; leave it out": ('init_from = "{run}"\n', "steps = 3\n"),
}
FOLLOWED.update(RECIPES)


@pytest.mark.parametrize("template", RECIPES)
def test_a_recipe_of_the_speedrun(template, tmp_path, finished_run):
    from groundling.train.speedrun.recipes import Recipes

    wrong, right = (text.replace("{run}", str(finished_run)) for text in RECIPES[template])
    preset = tmp_path / "mine.toml"
    preset.write_text(wrong, encoding="utf-8")
    refused_as(template, lambda: Recipes.of(str(preset)))
    preset.write_text(right, encoding="utf-8")
    assert Recipes.of(str(preset))


def test_the_advised_flag_is_a_setting_of_the_default_preset_too():
    assert set(load_preset("shakespeare_char.toml")) <= {item.name for item in dataclasses.fields(PretrainConfig)}
