"""A rank that dies in a collective, or collects something else than its peers, ends the run at once and is named."""

from pathlib import Path

import pytest
import torch

from fat_ray.engine.step import Trainer
from fat_ray.errors import RankDisagreementError, RunFailedError
from fat_ray.fisher.collector import Sums
from fat_ray.fisher.reduce import world
from fat_ray.freeze.measured import FisherDrift
from fat_ray.spec.run import FreezeSpec
from fat_ray.spec.task import CustomTaskSpec
from fat_ray.train.local import run_local
from tests.support.distributed import run_distributed
from tests.support.jobs import task_of, tiny_job
from tests.support.rank_trouble import LEAVING_TASK

CPU = torch.device("cpu")


@pytest.mark.timeout(60)  # far below gloo's own half an hour
@pytest.mark.parametrize(("rank", "exit_code"), [(0, 3), (1, 0)])
def test_a_rank_that_leaves_in_the_middle_of_a_backward_is_named(tmp_path: Path, rank: int, exit_code: int) -> None:
    job = tiny_job(tmp_path, steps=1000)
    task = CustomTaskSpec(name=LEAVING_TASK, settings={"rank": rank, "step": 3, "exit_code": exit_code})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"task": task})})
    with pytest.raises(RunFailedError, match=f"^worker {rank}: its process ended early with exit code {exit_code}$"):
        run_local(job)


def skips_a_layer(rank: int, from_step: int, layer: str) -> tuple[int, str]:
    """Trains until somebody complains; the step, and the complaint."""
    job = tiny_job(Path("unused"), workers=world()[1], dropout=0.0)
    policy = FisherDrift(FreezeSpec(every=3, warmup_steps=3, threshold=0.0, cap=0.5))
    trainer = Trainer(job, task_of(job), policy=policy, device=CPU, stop_request=lambda: None, emit=lambda event: None)
    take = trainer.freezer.collector.take

    def take_less() -> Sums:
        skips = world()[0] == rank and trainer.freezer.step >= from_step
        return {key: value for key, value in take().items() if not (skips and key[0] == layer)}

    trainer.freezer.collector.take = take_less  # type: ignore[method-assign]
    try:
        for _ in range(6):
            trainer.step()
    except RankDisagreementError as error:
        return trainer.freezer.step, str(error)
    return trainer.freezer.step, "nobody noticed"


@pytest.mark.parametrize(("from_step", "noticed"), [(0, 0), (4, 4)])
def test_a_rank_that_skips_a_layer_is_named_on_every_rank(from_step: int, noticed: int) -> None:
    """At the first collection, and at the first one after groups froze at step 3, where layers leave the collection."""
    found = run_distributed(skips_a_layer, 2, 1, from_step, "6")
    assert len(set(found)) == 1
    step, message = found[0]
    assert step == noticed
    assert message.startswith(f"layers with statistics at step {noticed}: rank 1 disagrees with rank 0")


def test_ranks_that_collect_alike_are_left_alone() -> None:
    assert run_distributed(skips_a_layer, 2, -1, 0, "6") == [(6, "nobody noticed")] * 2
