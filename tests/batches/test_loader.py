"""Batches: order, shares of ranks, padding; and that only its key changes a sample's noise."""

import pickle
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pytest
import torch

from qwen3llada.batches.batch import Batch, StepFacts
from qwen3llada.batches.collate import PADDING_TOKEN
from qwen3llada.batches.loader import make_loader
from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import BatchSettings, real_token_ids
from qwen3llada.batches.source import Source, Step
from qwen3llada.batches.step_plan import epoch_order, micro_batches_of, share, step_plan
from qwen3llada.diffusion.corruption import NoiseParams
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.modeling.params import AttentionParams

MASK, EOS = 50, 1
REAL = torch.arange(2, MASK)
HARD = NoiseParams(
    schedule="cosine", noise_type="random_replace", mask_contiguous_region_prob=0.4, random_length_prob=0.5
)
SEED, EPOCH = 11, 3


def blocks_of(length: int) -> AttentionParams:
    """Blocks of `length` tokens, counted from the end of the prompt."""
    return AttentionParams(policy="block", block_length=length)


class Texts:
    """Packed pretraining sequences, the last one shorter."""

    def __init__(self, samples: int, length: int = 24) -> None:
        rng = np.random.default_rng(0)
        self.lengths = np.full(samples, length)
        self.lengths[-1] = length // 2
        self.samples = [Sample(rng.integers(2, MASK, n, dtype=np.int32)) for n in self.lengths]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class Answers(Texts):
    """Prompts and answers of all lengths. Every third answer is truncated, so it does not end with EOS."""

    def __init__(self, samples: int) -> None:
        rng = np.random.default_rng(1)
        self.samples = []
        for number in range(samples):
            prompt, answer = rng.integers(1, 15), rng.integers(1, 30)
            tokens = rng.integers(2, MASK, prompt + answer, dtype=np.int32)
            if number % 3:
                tokens[-1] = EOS
            self.samples.append(Sample(tokens, int(prompt)))
        self.lengths = np.array([len(sample.tokens) for sample in self.samples])


class Counting:
    """A stream whose sample at position k contains k, 3k, 5k …. Its cursor says where the next one starts."""

    sample_length = 8

    def __init__(self, end: int | None = None, sample_length: int = 8) -> None:
        self.end, self.made_length, self.first_read = end, sample_length, 0

    def read(self, positions, cursors):
        at = max(cursors.values(), default=0)
        self.first_read = at
        numbers = count(at)
        for position in positions:
            for number in numbers:
                if self.end is not None and number >= self.end:
                    return
                assert number <= position, "positions must rise from where the cursors say"
                if number == position:
                    break
            odd = np.arange(1, 2 * self.made_length, 2)
            yield Sample(number * odd % (MASK - 2) + 2, cursor=number + 1)

    def needed(self, cursors):
        return {max(cursors): cursors[max(cursors)]}


def settings_of(noise=HARD, **kwargs) -> BatchSettings:
    given = {"seed": SEED, "mask_token_id": MASK, "eos_token_id": EOS, "real_tokens": REAL, **kwargs}
    return BatchSettings(noise=noise, **given)


@dataclass
class Placed:
    """A batch with the positions of its samples, computed by the documented rule; a batch does not store them."""

    batch: Batch
    indices: np.ndarray  # positions in the epoch's order; none for a row of padding
    dataset_indices: np.ndarray

    def __getattr__(self, name):
        return getattr(self.batch, name)


def placed(batch, source, settings, epoch=EPOCH) -> Placed:
    step, of_all = batch.step, settings.micro_batch_size * settings.num_processes
    start = step.number * settings.micro_batch_size * settings.num_processes * settings.gradient_accumulation_steps
    positions = np.arange(start, start + step.samples)[step.micro_batch * of_all :][:of_all]
    own = np.array_split(positions, settings.num_processes)[settings.process_index]
    assert len(own) == len(batch.tokens) or (len(own) == 0 and not batch.valid.any())
    if isinstance(source, Counting):
        return Placed(batch, own, own)
    return Placed(batch, own, epoch_order(source.lengths, seed=settings.seed, epoch=epoch, bucket=settings.bucket)[own])


class loader:
    """`make_loader` with the settings of these tests. Its batches are `Placed`."""

    def __init__(self, source, noise=HARD, *, epoch=EPOCH, start_step=0, cursors=None, **kwargs):
        self.source, self.epoch, self.settings = source, epoch, settings_of(noise, **kwargs)
        self.made = make_loader(source, self.settings, epoch=epoch, start_step=start_step, cursors=cursors)

    def __len__(self):
        return len(self.made)

    def __iter__(self):
        return (placed(batch, self.source, self.settings, self.epoch) for batch in self.made)


def all_processes(source, *, num_processes=1, **kwargs):
    """The batches of each rank: a list of lists."""
    return [
        list(loader(source, num_processes=num_processes, process_index=index, **kwargs))
        for index in range(num_processes)
    ]


def by_position(processes):
    """Position in the epoch -> everything that the model sees of that sample, without padding."""
    seen = {}
    for batch in (batch for batches in processes for batch in batches):
        for row, position in enumerate(batch.indices.tolist()):
            assert position not in seen
            real = batch.valid[row]
            prompt = None if batch.prompt_lengths is None else batch.prompt_lengths[row].item()
            seen[position] = (
                batch.dataset_indices[row].item(),
                batch.tokens[row][real].tolist(),
                batch.noised.tokens[row][real].tolist(),
                batch.noised.masked[row][real].tolist(),
                batch.noised.p_mask[row].item(),
                batch.t[row].item(),
                prompt,
            )
    return seen


# --- The order and the shares ---


@pytest.mark.parametrize("bucket", [1, 4, 10, 1000])
def test_every_sample_once(bucket):
    lengths = np.random.default_rng(2).integers(1, 500, 237)
    plan = step_plan(lengths, settings_of(seed=0, micro_batch_size=16, bucket=bucket), epoch=0)
    steps = [plan[k] for k in range(len(plan))]
    assert [len(positions) for positions, _ in steps] == [16] * 14 + [13]
    assert np.concatenate([positions for positions, _ in steps]).tolist() == list(range(237))
    assert sorted(np.concatenate([indices for _, indices in steps])) == list(range(237))


@pytest.mark.parametrize("bucket", [1, 8])
def test_order_is_keyed(bucket):
    lengths = np.random.default_rng(2).integers(1, 500, 300)
    base = epoch_order(lengths, seed=1, epoch=1, bucket=bucket).tolist()
    assert base == epoch_order(lengths, seed=1, epoch=1, bucket=bucket).tolist()
    assert base != list(range(300))
    for seed, epoch in ((2, 1), (1, 2)):
        assert base != epoch_order(lengths, seed=seed, epoch=epoch, bucket=bucket).tolist()


def test_order_is_uniform():
    first = [epoch_order(np.ones(5, dtype=np.int64), seed=seed, epoch=0)[0] for seed in range(2000)]
    assert np.bincount(first).tolist() == pytest.approx([400] * 5, abs=4 * np.sqrt(400))


def test_buckets_are_of_similar_length():
    lengths = np.random.default_rng(3).integers(1, 1001, 4096 * 2 + 17)
    order = epoch_order(lengths, seed=0, epoch=0, bucket=64)
    groups = lengths[order[: 4096 * 2]].reshape(-1, 64)
    spread = groups.max(axis=1) - groups.min(axis=1)
    assert spread.mean() < 20  # 1000 / 64 on average; without buckets nearly 1000
    # Neither the groups nor the samples inside are sorted by length.
    assert abs(np.corrcoef(groups.mean(axis=1), np.arange(128))[0, 1]) < 0.3
    assert abs(np.corrcoef(groups[:, 0] - groups.mean(axis=1), groups[:, -1] - groups.mean(axis=1))[0, 1]) < 0.3


@pytest.mark.parametrize("samples", [1, 2, 3, 24, 29, 48])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_shares_partition_the_step(samples, num_processes):
    positions = np.arange(100, 100 + samples)
    cut = {"micro_batch_size": 4, "gradient_accumulation_steps": 4, "num_processes": num_processes}
    processes = [settings_of(**cut, process_index=k) for k in range(num_processes)]
    taken = []
    for number in range(micro_batches_of(samples, processes[0])):
        shares = [share(positions, number, process) for process in processes]
        assert max(map(len, shares)) <= 4
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        taken.extend(np.concatenate(shares).tolist())
    assert taken == positions.tolist()


def test_steps_and_micro_batches_are_numbered():
    batches = list(loader(Texts(29), micro_batch_size=4, gradient_accumulation_steps=3))
    numbers = [(b.step.number, b.step.micro_batch, b.step.micro_batches, b.step.samples) for b in batches]
    full = [(step, k, 3, 12) for step in range(2) for k in range(3)]
    assert numbers == [*full, (2, 0, 2, 5), (2, 1, 2, 5)]
    assert [b.step.is_last_micro_batch for b in batches] == [False, False, True] * 2 + [False, True]
    assert len(loader(Texts(29), micro_batch_size=4, gradient_accumulation_steps=3)) == len(batches)


# --- Invariance ---

CUTS = [
    {"micro_batch_size": 1, "gradient_accumulation_steps": 16},
    {"micro_batch_size": 4, "gradient_accumulation_steps": 4},
    {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "num_processes": 2},
    {"micro_batch_size": 8, "gradient_accumulation_steps": 1, "num_processes": 2, "num_workers": 2},
    {"micro_batch_size": 2, "gradient_accumulation_steps": 8, "num_workers": 2},
]
SOURCES = {
    "pretraining": (Texts(45), {}),
    "sft": (Answers(45), {"bucket": 4, "answer_padding": "block", "attention": blocks_of(8)}),
    "sft batch": (Answers(45), {"bucket": 4, "answer_padding": "batch"}),
}


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: " ".join(map(str, cut.values())))
@pytest.mark.parametrize("kind", SOURCES)
def test_cutting_up_the_step_changes_nothing(kind, cut):
    source, settings = SOURCES[kind]
    whole = by_position(all_processes(source, micro_batch_size=16, **settings))
    assert len(whole) == 45
    assert by_position(all_processes(source, **cut, **settings)) == whole


@pytest.mark.parametrize("kind", ["pretraining", "sft"])
def test_the_step_size_changes_nothing(kind):
    source, settings = SOURCES[kind]
    whole = by_position(all_processes(source, micro_batch_size=16, **settings))
    for size in (1, 4):
        assert by_position(all_processes(source, micro_batch_size=size, **settings)) == whole


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_restart_in_mid_epoch(kind, num_workers):
    source, settings = SOURCES[kind]
    settings = {**settings, "micro_batch_size": 2, "gradient_accumulation_steps": 4, "num_workers": num_workers}
    uninterrupted = list(loader(source, **settings))
    resumed = list(loader(source, start_step=3, **settings))
    assert [b.step for b in resumed] == [b.step for b in uninterrupted[12:]]
    assert by_position([resumed]) == by_position([uninterrupted[12:]])
    assert list(loader(source, start_step=6, **settings)) == []


def test_epochs_and_seeds_differ():
    source = Texts(32)
    base = by_position([list(loader(source, micro_batch_size=16))])
    for change in ({"epoch": 4}, {"seed": 12}):
        other = by_position([list(loader(source, micro_batch_size=16, **change))])
        assert [other[k][0] for k in range(32)] != [base[k][0] for k in range(32)]
        assert [other[k][4] for k in range(32)] != [base[k][4] for k in range(32)]


def test_the_global_generator_is_not_moved():
    state = torch.get_rng_state()
    for workers in (0, 1):
        list(loader(Texts(8), micro_batch_size=4, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_every_process_knows_the_denominator(name, kind, num_processes):
    """Includes the last step of 45 samples, in which some ranks get none."""
    source, settings = SOURCES[kind]
    loss = LOSSES[name]
    processes = all_processes(
        source,
        num_processes=num_processes,
        micro_batch_size=2,
        gradient_accumulation_steps=44 // 2 // num_processes,
        **settings,
    )
    assert len({len(batches) for batches in processes}) == 1
    counted: dict[int, float] = {}
    known: dict[int, set[float]] = {}
    for batch in (batch for batches in processes for batch in batches):
        number = batch.step.number
        share = loss.denominator(batch.tokens, valid=batch.valid, prompt_lengths=batch.prompt_lengths)
        counted[number] = counted.get(number, 0) + share
        known.setdefault(number, set()).add(batch.step.denominator(loss))
    assert known == {number: {total} for number, total in counted.items()}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("start", [0, 1])
def test_steps_hold_their_micro_batches_and_know_all_processes(kind, start):
    """Two ranks, three steps of 20, 20 and 5 samples: both ranks know the denominators over all samples."""
    source, settings = SOURCES[kind]
    cut = {"micro_batch_size": 5, "gradient_accumulation_steps": 2, "num_processes": 2}
    made = [
        list(Source(source, settings_of(**cut, **settings, process_index=index)).steps(EPOCH, start_step=start))
        for index in range(2)
    ]
    assert [[len(step.micro_batches) for step in steps] for steps in made] == [[2, 2, 1][start:]] * 2
    for pair in zip(*made, strict=True):
        held = [batch for step in pair for batch in step.micro_batches]
        assert {step.tokens for step in pair} == {pair[0].facts.tokens}
        for loss in LOSSES.values():
            parts = [loss.denominator(b.tokens, valid=b.valid, prompt_lengths=b.prompt_lengths) for b in held]
            assert [step.denominator(loss) for step in pair] == [sum(parts)] * 2
    loaded = list(loader(source, start_step=start, **cut, **settings))
    held = [placed(b, source, settings_of(**cut, **settings)) for step in made[0] for b in step.micro_batches]
    assert by_position([held]) == by_position([loaded])


def test_a_step_without_a_token_has_the_denominator_1():
    facts = {"number": 0, "micro_batch": 0, "micro_batches": 1, "longest": 0}
    empty = StepFacts(**facts, samples=0, tokens=0, sft=False)
    batch = next(iter(make_loader(Texts(1), settings_of(micro_batch_size=1), epoch=0)))
    step = Step([replace(batch, step=empty)])
    assert {step.denominator(loss) for loss in LOSSES.values()} == {1.0}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", SOURCES)
def test_the_gradient_of_a_step_does_not_depend_on_its_parts(name, kind):
    """The 16 samples of a step, split into micro-batches and ranks, through a small model and summed as in training."""
    source, settings = SOURCES[kind]
    loss = LOSSES[name]
    rng = np.random.default_rng(7)
    start = torch.from_numpy(rng.normal(0, 1, (MASK + 1, MASK + 1)))

    def gradient(**cut):
        table = start.clone().requires_grad_()
        for batch in (b for batches in all_processes(source, **cut, **settings) for b in batches):
            if batch.step.number > 0:
                continue
            weights = loss.token_weights(
                batch.tokens,
                batch.noised,
                mask_token_id=MASK,
                valid=batch.valid,
                prompt_lengths=batch.prompt_lengths,
                reweight_cap=5.0,
            )
            logits = table[batch.noised.tokens]
            cross_entropy = -logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]
            ((weights * cross_entropy).sum() / batch.step.denominator(loss)).backward()
        return table.grad

    (whole,) = all_processes(source, micro_batch_size=16, **settings)
    first = whole[0]
    table = start.clone().requires_grad_()
    loss(
        table[first.noised.tokens],
        first.tokens,
        first.noised,
        mask_token_id=MASK,
        valid=first.valid,
        prompt_lengths=first.prompt_lengths,
        smoothing=0.0,
        reweight_cap=5.0,
    ).backward()
    for cut in (
        {"micro_batch_size": 16},
        {"micro_batch_size": 4, "gradient_accumulation_steps": 4},
        {"micro_batch_size": 1, "gradient_accumulation_steps": 8, "num_processes": 2},
    ):
        torch.testing.assert_close(gradient(**cut), table.grad, rtol=1e-6, atol=1e-9)


# --- Rows ---


def test_answers_are_continued():
    samples = [
        Sample(np.array([5, 6, 7, EOS]), 1),
        Sample(np.array([5, 6, 8, 9, 10, 11]), 2),
        Sample(np.array([5, EOS]), 1),
    ]

    class Three(Texts):
        def __init__(self):
            self.samples, self.lengths = samples, np.array([4, 6, 2])

    def rows(**settings):
        (batch,) = loader(Three(), NoiseParams(min_masking_rate=1.0), micro_batch_size=3, **settings)
        found = {}
        for row, index in enumerate(batch.dataset_indices.tolist()):
            found[index] = batch.tokens[row][batch.valid[row]].tolist()
            answer = batch.valid[row] & (torch.arange(batch.tokens.shape[1]) >= batch.prompt_lengths[row])
            assert torch.equal(batch.noised.masked[row], answer)
            assert batch.prompt_lengths[row] == samples[index].prompt_length
        return [found[k] for k in range(3)], batch

    stored = [sample.tokens.tolist() for sample in samples]
    unpadded, batch = rows(answer_padding="none")
    assert unpadded == stored
    assert batch.padded
    by_block, _ = rows(answer_padding="block", attention=blocks_of(4))
    # Answers of 3 and 1 tokens become 4; the second, truncated, is never continued with EOS.
    assert by_block == [[5, 6, 7, EOS, EOS], stored[1], [5, EOS, EOS, EOS, EOS]]
    short, _ = rows(answer_padding="block", attention=blocks_of(4), max_length=4)
    assert short == [[5, 6, 7, EOS], stored[1], [5, EOS, EOS, EOS]]  # the second is already longer
    by_batch, batch = rows(answer_padding="batch")
    assert by_batch == [[5, 6, 7, EOS, EOS, EOS], stored[1], [5, EOS, EOS, EOS, EOS, EOS]]
    assert not batch.padded


def test_the_longest_of_the_step_not_of_the_micro_batch():
    source = Answers(32)
    processes = all_processes(
        source, micro_batch_size=2, gradient_accumulation_steps=4, num_processes=2, answer_padding="batch"
    )
    for batch in (batch for batches in processes for batch in batches):
        for row, index in enumerate(batch.dataset_indices.tolist()):
            expected = batch.step.longest if index % 3 else source.lengths[index]
            assert batch.valid[row].sum() == expected


@pytest.mark.parametrize("multiple", [1, 16])
def test_padding_of_sft(multiple):
    source = Answers(40)
    for batch in loader(source, micro_batch_size=4, bucket=5, pad_to_multiple_of=multiple):
        lengths = source.lengths[batch.dataset_indices]
        assert batch.valid.sum(1).tolist() == lengths.tolist()
        assert batch.tokens.shape[1] == -(-lengths.max() // multiple) * multiple
        assert batch.valid[:, 0].all()
        assert (batch.valid.int().diff(dim=1) <= 0).all()
        assert batch.padded == (not batch.valid.all())


def test_cut_pretraining_sequences_keep_the_width():
    source = Texts(64)
    lengths = []
    for batch in loader(source, micro_batch_size=8):
        assert batch.tokens.shape == (8, 24)
        lengths.extend(batch.valid.sum(1).tolist())
        for row, index in enumerate(batch.dataset_indices.tolist()):
            kept = int(batch.valid[row].sum())
            assert batch.tokens[row, :kept].tolist() == source[index].tokens[:kept].tolist()
            assert not batch.noised.masked[row, kept:].any()
            assert (batch.noised.tokens[row, kept:] == PADDING_TOKEN).all()  # nothing of the cut-off tail remains
    assert 20 < sum(length < 24 for length in lengths) < 44  # about half are cut
    whole = [b.valid.sum().item() for b in loader(source, NoiseParams(random_length_prob=0.0), micro_batch_size=8)]
    assert sum(whole) == source.lengths.sum()


def test_sft_samples_are_never_cut():
    source = Answers(32)
    always = NoiseParams(random_length_prob=1.0)
    for batch in loader(source, always, micro_batch_size=8):
        assert batch.valid.sum(1).tolist() == source.lengths[batch.dataset_indices].tolist()


@pytest.mark.parametrize("kind", SOURCES)
def test_a_process_without_a_sample_takes_part(kind):
    source, settings = SOURCES[kind]
    last = all_processes(source, micro_batch_size=22, num_processes=2, pad_to_multiple_of=8, **settings)[1][-1]
    assert last.tokens.shape == last.noised.tokens.shape
    assert last.tokens.shape[1] % 8 == 0
    assert len(last.indices) == 0 == last.valid.sum()
    assert last.step.samples == 1
    for loss in LOSSES.values():
        given = {"valid": last.valid, "prompt_lengths": last.prompt_lengths}
        assert not loss.token_weights(last.tokens, last.noised, mask_token_id=MASK, **given).any()
        assert loss.denominator(last.tokens, **given) == 0


def test_a_batch_moves_whole():
    settings = settings_of(micro_batch_size=4)
    batch = next(iter(make_loader(Answers(4), settings, epoch=EPOCH)))
    again = pickle.loads(pickle.dumps(batch))
    found, expected = (by_position([[placed(b, Answers(4), settings)]]) for b in (again, batch))
    assert found == expected
    assert (again.step, again.padded, again.cursors) == (batch.step, batch.padded, batch.cursors)
    assert batch.tokens.dtype == batch.noised.tokens.dtype == torch.int64
    per_position = replace(
        batch,
        noised=batch.noised._replace(p_mask=torch.rand(batch.tokens.shape)),
        t=torch.rand(batch.tokens.shape),
    )
    again = pickle.loads(pickle.dumps(per_position))
    assert torch.equal(again.noised.p_mask, per_position.noised.p_mask)
    assert torch.equal(again.t, per_position.t)


# --- Streams ---


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: " ".join(map(str, cut.values())))
def test_a_stream_is_cut_up_like_a_dataset(cut):
    def first_steps(**settings):
        processes = settings.get("num_processes", 1)
        batches = [loader(Counting(), process_index=index, **settings) for index in range(processes)]
        return [
            [b for _, b in zip(range(3 * settings.get("gradient_accumulation_steps", 1)), part, strict=False)]
            for part in batches
        ]

    whole = by_position(first_steps(micro_batch_size=16))
    assert sorted(whole) == list(range(48))
    assert all(whole[k][1][0] == k % (MASK - 2) + 2 for k in whole)
    parts = first_steps(**cut)
    assert by_position(parts) == whole
    for loss in LOSSES.values():
        shares = [loss.denominator(b.tokens, valid=b.valid) for batches in parts for b in batches if b.step.number == 1]
        assert parts[0][-1].step.number == 2
        known = {b.step.denominator(loss) for batches in parts for b in batches if b.step.number == 1}
        assert known == {sum(shares)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_goes_on_from_its_cursors(num_workers):
    settings = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "num_workers": num_workers}
    batches = [batch for _, batch in zip(range(12), loader(Counting(), **settings), strict=False)]
    cursors = {key: value for b in batches[6:8] for key, value in b.cursors.items()}
    assert cursors == {12: 13, 13: 14, 14: 15, 15: 16}
    stream = Counting()
    resumed = loader(stream, start_step=4, cursors=stream.needed(cursors), **settings)
    assert by_position([[b for _, b in zip(range(4), resumed, strict=False)]]) == by_position([batches[8:]])
    assert num_workers or stream.first_read == 16  # earlier samples were not read again
    afresh = loader(Counting(), start_step=4, **settings)
    assert by_position([[b for _, b in zip(range(4), afresh, strict=False)]]) == by_position([batches[8:]])


@pytest.mark.parametrize(
    ("stream", "message"), [(Counting(end=6), "ended at position 6"), (Counting(sample_length=7), "must have 8")]
)
def test_a_stream_that_breaks_its_promise(stream, message):
    with pytest.raises(ValueError, match=message):
        list(loader(stream, micro_batch_size=4))


# --- Errors ---


class Mixed(Texts):
    def __getitem__(self, index: int) -> Sample:
        return Sample(self.samples[index].tokens, 1 if index else None)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (Texts(4), {"micro_batch_size": 0}, "micro_batch_size=0"),
        (Texts(4), {"micro_batch_size": 1, "gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
        (Texts(4), {"micro_batch_size": 1, "num_processes": 2, "process_index": 2}, "process_index=2"),
        (Texts(4), {"micro_batch_size": 1, "start_step": 5}, "start_step=5"),
        (Texts(4), {"micro_batch_size": 1, "bucket": 0}, "bucket=0"),
        (Texts(4), {"micro_batch_size": 1, "cursors": {}}, "cursors must be None"),
        (Texts(4), {"micro_batch_size": 1, "answer_padding": "block"}, "no prompt_length"),
        (Texts(4), {"micro_batch_size": 1, "pad_to_multiple_of": 0}, "pad_to_multiple_of=0"),
        (Answers(4), {"micro_batch_size": 1, "answer_padding": "batch", "eos_token_id": None}, "no EOS"),
        (Answers(0), {"micro_batch_size": 1}, "at least one sample"),
        (Mixed(4), {"micro_batch_size": 4}, "all have a prompt_length or none"),
    ],
)
def test_bad_arguments(source, settings, message):
    with pytest.raises(ValueError, match=message):
        list(loader(source, **settings))


def test_real_token_ids():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"a": 0, "b": 1, "<unk>": 2, "c": 3}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), unk_token="<unk>")
    tokenizer.add_special_tokens({"mask_token": "<|mask|>", "eos_token": "<eos>"})
    tokenizer.add_tokens(["<think>"])
    assert real_token_ids(tokenizer).tolist() == [0, 1, 3]
