"""The rows of `bench.scale`, the most important first."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training run. `gpus` 0: all. `samples`: sequences in a step, over all GPUs; None: one micro-batch each."""

    name: str
    size: str
    gpus: int
    strategy: str  # one, ddp, fsdp2
    policy: str  # block_causal (blocks of 32) or full
    rows: int  # sequences in a micro-batch
    samples: int | None = None
    checkpointing: bool = False
    steps: int = 8  # timed, after four
    checkpoint: bool = False  # also save, take two steps more, and resume in another process
    gathered: bool | None = None  # FSDP2: whether weights stay gathered; None: as the memory estimate says
    seconds: int = 60  # expected
    length: int = 1024


ROWS = [
    Row(name="8b-block", size="8b", gpus=0, strategy="fsdp2", policy="block_causal", rows=8, checkpointing=True,
        steps=6, checkpoint=True, seconds=80),
    Row(name="8b-full", size="8b", gpus=0, strategy="fsdp2", policy="full", rows=8, checkpointing=True, seconds=45),
    Row(name="0.6b-ddp", size="0.6b", gpus=0, strategy="ddp", policy="block_causal", rows=16, samples=128, seconds=40),
    Row(name="0.6b-one", size="0.6b", gpus=1, strategy="one", policy="block_causal", rows=16, samples=128,
        seconds=55),
    Row(name="1.7b-one", size="1.7b", gpus=1, strategy="one", policy="block_causal", rows=8, samples=64, steps=5,
        seconds=55),
    Row(name="1.7b-ddp", size="1.7b", gpus=0, strategy="ddp", policy="block_causal", rows=8, samples=64, seconds=45),
    Row(name="1.7b-fsdp2", size="1.7b", gpus=0, strategy="fsdp2", policy="block_causal", rows=8, samples=64,
        checkpoint=True, seconds=45),
    Row(name="4b-fsdp2", size="4b", gpus=0, strategy="fsdp2", policy="block_causal", rows=4, checkpointing=True,
        samples=32, checkpoint=True, seconds=50),
    Row(name="0.6b-fsdp2", size="0.6b", gpus=0, strategy="fsdp2", policy="full", rows=16, seconds=40),
    Row(name="8b-resharded", size="8b", gpus=0, strategy="fsdp2", policy="block_causal", rows=8, checkpointing=True,
        steps=5, gathered=False, seconds=45),
    Row(name="4b-two", size="4b", gpus=2, strategy="fsdp2", policy="block_causal", rows=4, samples=32,
        checkpointing=True, steps=2, seconds=50),
]  # fmt: skip
TINY = [
    Row(name="tiny-fsdp2", size="tiny", gpus=0, strategy="fsdp2", policy="block_causal", rows=2, length=64,
        checkpointing=True, samples=8, steps=3, checkpoint=True),
    Row(name="tiny-ddp", size="tiny", gpus=0, strategy="ddp", policy="block_causal", rows=2, length=64, samples=8,
        steps=3),
    Row(name="tiny-one", size="tiny", gpus=1, strategy="one", policy="block_causal", rows=2, length=64, samples=8,
        steps=3, checkpoint=True),
    Row(name="tiny-lost", size="none", gpus=1, strategy="one", policy="full", rows=2, length=64),
]  # fmt: skip
