"""The pack's nodes, and nothing else: what they compute is in ``op4ksr_core``."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .flux_shift import FluxShift16x
from .loaders import ExactVAENode, LoadF16VAE, LoadFluxSR, LoadSRLoRA
from .one_step_sampler import EmptyLatent16x, OneStepSamplerNode
from .periodicity import PeriodicityDiagnostic, SuppressPeriodicity
from .plan import PlanRun
from .prompt import LoadPromptEmbedding, SavePromptEmbedding
from .rope import ApplyRFR
from .sample_picture import SamplePicture
from .save import SavePicture
from .upscale import OneStepUpscale

NODES: list[type[io.ComfyNode]] = [
    LoadF16VAE,
    ExactVAENode,
    LoadFluxSR,
    ApplyRFR,
    PlanRun,
    OneStepUpscale,
    PeriodicityDiagnostic,
    SuppressPeriodicity,
    SamplePicture,
    OneStepSamplerNode,
    EmptyLatent16x,
    LoadSRLoRA,
    FluxShift16x,
    SavePicture,
    SavePromptEmbedding,
    LoadPromptEmbedding,
]


class Op4ksrExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    return Op4ksrExtension()
