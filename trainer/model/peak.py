"""What GPUs do at most, and which share of it a training run gets."""

# Dense bfloat16, in FLOP/s, of NVIDIA's data sheets (their figures with sparsity, halved).
PEAK_FLOPS = {"A100": 312e12, "H100": 989.5e12, "H200": 989.5e12, "H100-PCIE": 756.5e12}
FLOPS_PER_MAC = 2
PASSES = 3  # forward, and twice as much backward


def peak_flops(device_name: str) -> float | None:
    """Return the peak of a GPU by the name that its driver gives it, such as NVIDIA H100 80GB HBM3; None if unknown."""
    for kind in ("A100", "H100", "H200"):
        if kind in device_name:
            return PEAK_FLOPS["H100-PCIE" if kind == "H100" and "PCIe" in device_name else kind]
    return None


def utilisation(images_per_second: float, macs_per_image: int, num_gpus: int, peak: float) -> float:
    """Return the model FLOPs utilisation (MFU): what the network needs, against what the GPUs do at most in bfloat16.

    Work that is done twice to save memory does not count.

    Args:
        images_per_second: Of all GPUs together.
        macs_per_image: Multiply-accumulates of a forward pass.
        num_gpus: That share the work.
        peak: Of one of them, in FLOP/s.
    """
    return images_per_second * macs_per_image * FLOPS_PER_MAC * PASSES / (num_gpus * peak)
