"""Parts of a plan in words, for the cards of models."""

from dicomnode.ml.model.architecture import DynUNetPlan, MonaiPlan, NetworkPlan, UNetPlan
from dicomnode.ml.model.plan import (
    AsItIs,
    ClipAndStandardise,
    FixedRange,
    ImageRange,
    Normalisation,
    PercentileZScore,
    ZScore,
)


def normalisation_in_words(normalisation: Normalisation) -> str:
    """Say what happens to the intensities before the network sees them."""
    match normalisation:
        case PercentileZScore(lower_percentile=lower, upper_percentile=upper):
            words = f"any scale: clipped at the percentiles {lower:g} and {upper:g}, then brought to mean 0"
            return f"{words} and deviation 1, per image"
        case ZScore(over=over):
            where = {"image": "", "nonzero": " over what is not 0", "nonzero_filled": " over the body in it"}
            return f"any scale: brought to mean 0 and deviation 1{where[over]}, per image"
        case ClipAndStandardise(lower=lower, upper=upper, mean=mean, deviation=deviation):
            words = f"modality units, clipped to {lower:g} to {upper:g}"
            return f"{words}, less {mean:g}, divided by {deviation:g}"
        case ImageRange():
            return "any scale: the range of the image becomes 0 to 1"
        case FixedRange(source=source, target=target):
            words = f"modality units, {source[0]:g} to {source[1]:g}"
            return f"{words} becomes {target[0]:g} to {target[1]:g}"
        case AsItIs():
            return "as they come"


def network_in_words(plan: NetworkPlan) -> str:
    """Name a network and its sizes in a line."""
    match plan:
        case DynUNetPlan():
            widths = "-".join(map(str, plan.filters))
            return f"3-D U-Net (MONAI DynUNet), filters {widths}, instance normalisation"
        case UNetPlan():
            kind = "U-Net" if plan.kind == "plain_conv_unet" else "U-Net with residual encoder"
            words = f"{plan.dimensions}-D {kind} as nnU-Net plans it"
            return f"{words}, features {'-'.join(map(str, plan.features))}, {plan.norm} normalisation"
        case MonaiPlan():
            return f"MONAI {plan.network}"
