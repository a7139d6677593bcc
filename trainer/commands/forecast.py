"""`trainer pretrain --dry-run`: what a run will take, as text."""

from collections.abc import Iterator
from typing import Any

from pipeline.base.quantities import human_bytes, human_seconds, quantity


def forecast_lines(config: Any, num_ranks: int, cluster: str | None, price: float | None) -> Iterator[str]:
    """Yield lines about a run that could start.

    Args:
        config: Of the run.
        num_ranks: That share its batch, where no cluster is named.
        cluster: NODESxGPUSxKIND, or None.
        price: Of a GPU for an hour, in any currency.

    Raises:
        ConfigError: There is no such cluster, or the batch does not fit it.
    """
    from trainer.jobs.checks import num_steps  # noqa: PLC0415
    from trainer.jobs.forecast import ASSUMPTIONS, checkpoint_bytes, forecast, machines, milestones  # noqa: PLC0415
    from trainer.model.architecture import parse_architecture  # noqa: PLC0415
    from trainer.model.cost import layers, step_memory  # noqa: PLC0415
    from trainer.recipes.data import training_sources  # noqa: PLC0415

    on = machines(cluster) if cluster else None
    num_ranks = on.num_gpus if on else max(1, num_ranks)
    recipe, sources = config.recipe, training_sources(config)
    num_samples = sum(source.selection.num_samples for source in sources)
    num_bytes = sum(source.selection.num_bytes for source in sources)
    found = layers(
        parse_architecture(config.model), sources[0].selection.dataset.version.num_classes, recipe.resolution_px
    )
    num_parameters, num_macs = (
        sum(layer.num_parameters for layer in found),
        sum(layer.num_macs for layer in found),
    )
    steps, picture_bytes = num_steps(config, num_samples), num_bytes / num_samples

    yield f"schedule: {steps:,} steps of {recipe.batch_size:,}, {steps * recipe.batch_size:,} pictures in all"
    for point in milestones(recipe, num_samples):
        yield f"  learning rate {point.learning_rate:.3g} from step {point.step:,} (epoch {point.epoch:.3g})"
    if recipe.schedule == "cosine":
        yield f"  along a cosine to 0 at step {steps:,}"

    micro = min(config.microbatch_size, -(-recipe.batch_size // num_ranks))
    memory = step_memory(
        found,
        micro,
        half=config.precision == "bfloat16",
        recomputes=config.recomputes,
        num_shards=(config.ranks_per_replica or num_ranks) if config.sharded else 1,
        num_moments=config.num_moments,
    )
    yield (
        f"memory of each of {quantity(num_ranks, 'rank')}: {human_bytes(memory.total)} for micro-batches of {micro} in "
        f"{config.precision}: {human_bytes(memory.weights)} of weights, gradients and moments, "
        f"{human_bytes(memory.total - memory.weights)} of kernels and activations"
    )
    size = checkpoint_bytes(num_parameters, config.num_moments)
    yield f"data: {human_bytes(num_bytes)}, {human_bytes(picture_bytes)} a picture"
    # The newest ones, the best one, and the one that is being written.
    yield (
        f"checkpoints: {human_bytes(size)} each, of which each rank writes {human_bytes(size / num_ranks)}; "
        f"{human_bytes(size * (config.keep_checkpoints + 2))} at most, and those that are kept for good"
    )
    if not on:
        yield f"data rate: {human_bytes(1000 * picture_bytes)}/s for 1,000 images/s; --cluster 64x8xH100 says how many"
        return
    told = forecast(
        num_macs,
        num_parameters,
        steps,
        recipe.batch_size,
        on,
        recomputes=config.recomputes,
        num_moments=config.num_moments,
    )
    yield (
        f"on {quantity(on.num_nodes, 'node')} of {on.gpus_per_node} {on.gpu}: "
        f"{told.images_per_second.low:,.0f} to {told.images_per_second.high:,.0f} images/s, "
        f"{told.step_seconds.low:.3g} to {told.step_seconds.high:.3g} s a step"
    )
    rate = told.images_per_second.times(picture_bytes)
    yield f"data rate: {human_bytes(rate.low)}/s to {human_bytes(rate.high)}/s"
    often, rarely = map(human_seconds, told.interval_seconds)
    yield (
        f"a checkpoint every {often} to {rarely}, stored after "
        f"{told.save_seconds.low:.2g} to {told.save_seconds.high:.2g} s"
    )
    yield (
        f"failures: {told.num_failures.low:,.1f} to {told.num_failures.high:,.1f}; with the saves they take "
        f"{told.lost_share.low:.1%} to {told.lost_share.high:.1%} of the time"
    )
    yield f"time: {human_seconds(told.hours.low * 3600)} to {human_seconds(told.hours.high * 3600)}"
    paid = f"cost: {told.gpu_hours.low:,.0f} to {told.gpu_hours.high:,.0f} GPU hours"
    if price:
        paid += f"; at {price:g} each {told.gpu_hours.low * price:,.0f} to {told.gpu_hours.high * price:,.0f}"
    yield paid
    yield "assumed:"
    for line in ASSUMPTIONS:
        yield f"  - {' '.join(line.split())}"
