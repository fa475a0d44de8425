"""GPUs: memory, bandwidth, arithmetic, links, watts, each from its maker's data sheet."""

from collections.abc import Mapping
from dataclasses import dataclass

from inferbus_sizing.errors import SizingError

MIB = 1 << 20
_TERA = 1e12
_GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Gpu:
    """``memory``: bytes that the driver reports (nvidia-smi's "memory.total"), less than the name says or more.
    ``flops``: dense, without sparsity, by arithmetic. ``link``: bytes a second of one GPU to the others, one way;
    ``together``: how many such a link joins. ``dollars_per_hour``: an example to be replaced, no offer of anybody."""

    name: str
    title: str
    memory: int
    bandwidth: float
    flops: Mapping[str, float]
    watts: int
    link: float
    together: int
    link_title: str
    dollars_per_hour: float
    source: str

    def rate(self, arithmetic: str) -> tuple[str, float]:
        """Which arithmetic products of that precision run in here, and its FLOPS."""
        if arithmetic == "mxfp4":
            arithmetic = "fp8" if "fp4" in self.flops else "bf16"
        if arithmetic not in self.flops:
            arithmetic = "bf16"
        return arithmetic, self.flops[arithmetic]


PRICE_SOURCE = "an example: about what rented ones cost by the hour on demand in late 2025; give your own"

_H = "NVIDIA H100/H200 data sheets (dense: half of the figures with sparsity)"
_PCIE4, _PCIE5 = 32 * _GIGA, 64 * _GIGA


def _gpu(
    name: str, title: str, mib: int, gigabytes: float, teraflops: Mapping[str, float], watts: int,
    link: tuple[float, int, str], dollars: float, source: str,
) -> Gpu:  # fmt: skip
    flops = {kind: rate * _TERA for kind, rate in teraflops.items()}
    return Gpu(
        name, title, mib * MIB, gigabytes * _GIGA, flops, watts, link[0], link[1], link[2], dollars, source,
    )  # fmt: skip


_NVLINK5, _NVLINK4, _NVLINK3 = 900 * _GIGA, 450 * _GIGA, 300 * _GIGA

GPUS = {
    one.name: one
    for one in (
        _gpu("b200", "B200 SXM 180 GB", 183_359, 8000,
             {"tf32": 1100, "bf16": 2250, "fp8": 4500, "int8": 4500, "fp4": 9000}, 1000,
             (_NVLINK5, 8, "NVLink 5"), 5.5, "NVIDIA DGX B200 data sheet: of 8 GPUs, by 8"),
        _gpu("gb200", "GB200 NVL72 186 GB", 189_471, 8000,
             {"tf32": 1250, "bf16": 2500, "fp8": 5000, "int8": 5000, "fp4": 10_000}, 1200,
             (_NVLINK5, 64, "NVLink 5"), 7.0, "NVIDIA GB200 NVL72 data sheet: of 72 GPUs, by 72"),
        _gpu("h200", "H200 SXM 141 GB", 143_771, 4800,
             {"tf32": 494.5, "bf16": 989.5, "fp8": 1979, "int8": 1979}, 700, (_NVLINK4, 8, "NVLink 4"), 3.5, _H),
        _gpu("h100", "H100 SXM 80 GB", 81_559, 3350,
             {"tf32": 494.5, "bf16": 989.5, "fp8": 1979, "int8": 1979}, 700, (_NVLINK4, 8, "NVLink 4"), 2.5, _H),
        _gpu("h100-pcie", "H100 PCIe 80 GB", 81_559, 2000,
             {"tf32": 378, "bf16": 756, "fp8": 1513, "int8": 1513}, 350, (_PCIE5, 8, "PCIe 5"), 2.2,
             "NVIDIA H100 PCIe product brief"),
        _gpu("h20", "H20 SXM 96 GB", 97_871, 4000,
             {"tf32": 74, "bf16": 148, "fp8": 296, "int8": 296}, 400, (_NVLINK4, 8, "NVLink 4"), 2.0,
             "NVIDIA H20 data sheet as resellers print it"),
        _gpu("a100", "A100 SXM 80 GB", 81_920, 2039,
             {"tf32": 156, "bf16": 312, "int8": 624}, 400, (_NVLINK3, 8, "NVLink 3"), 1.6, "NVIDIA A100 data sheet"),
        _gpu("a100-40", "A100 SXM 40 GB", 40_960, 1555,
             {"tf32": 156, "bf16": 312, "int8": 624}, 400, (_NVLINK3, 8, "NVLink 3"), 1.2, "NVIDIA A100 data sheet"),
        _gpu("rtx-pro-6000", "RTX PRO 6000 Blackwell Server 96 GB", 97_887, 1597,
             {"tf32": 250, "bf16": 500, "fp8": 1000, "int8": 1000, "fp4": 2000}, 600, (_PCIE5, 8, "PCIe 5"), 1.8,
             "NVIDIA RTX PRO 6000 Blackwell Server Edition data sheet (dense: half of the figures with sparsity)"),
        _gpu("l40s", "L40S 48 GB", 46_068, 864,
             {"tf32": 183, "bf16": 362, "fp8": 733, "int8": 733}, 350, (_PCIE4, 8, "PCIe 4"), 1.0,
             "NVIDIA L40S data sheet"),
        _gpu("rtx-4090", "GeForce RTX 4090 24 GB", 24_564, 1008,
             {"tf32": 82.6, "bf16": 165.2, "fp8": 330.3, "int8": 660.6}, 450, (_PCIE4, 8, "PCIe 4"), 0.4,
             "NVIDIA Ada GPU architecture white paper, with FP32 accumulation"),
        _gpu("a10", "A10 24 GB", 23_028, 600,
             {"tf32": 62.5, "bf16": 125, "int8": 250}, 150, (_PCIE4, 8, "PCIe 4"), 0.75, "NVIDIA A10 data sheet"),
        _gpu("l4", "L4 24 GB", 23_034, 300,
             {"tf32": 60, "bf16": 121, "fp8": 242.5, "int8": 242.5}, 72, (_PCIE4, 8, "PCIe 4"), 0.7,
             "NVIDIA L4 data sheet (dense: half of the figures with sparsity)"),
        _gpu("t4", "T4 16 GB", 15_360, 300,
             {"tf32": 8.1, "bf16": 65, "int8": 130}, 70, (_PCIE4 / 2, 8, "PCIe 3"), 0.35,
             "NVIDIA T4 data sheet; FP16, since it has no BF16"),
    )
}  # fmt: skip


def gpu_of(name: str) -> Gpu:
    found = GPUS.get(name.lower())
    if found is None:
        raise SizingError("gpu", f"There is no GPU {name}; there are {', '.join(GPUS)}")
    return found
