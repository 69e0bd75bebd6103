"""What is known of deployed families of pose nets: presets, each a function that gives a :class:`~.spec.PoseSpec`."""

from __future__ import annotations

from alpose.runtime.known_skeletons import BLAZEPOSE_33, FACE_468
from alpose.runtime.skeleton import COCO

from .spec import NetCrop, NetDecoder, NetInput, PoseSpec


def movenet(size_px: int = 192) -> PoseSpec:
    """MoveNet SinglePose, Lightning (192 px) and Thunder (256 px), converted by tf2onnx."""
    call = "StatefulPartitionedCall/"
    features = f"{call}center_net_mobile_net_v2fpn_feature_extractor/model_1/"
    return PoseSpec(
        name="movenet",
        input=NetInput(
            name="input:0", height_px=size_px, width_px=size_px, layout="nhwc", number="int32", scale=1.0, batch=1
        ),
        crop=NetCrop(kind="box", margin=1.25),
        # A cell of its maps answers with its corner: cell k is k * stride from the input's corner.
        decoder=NetDecoder(
            kind="keypoints", outputs=("Identity:0",), columns=("y", "x", "score"), unit="share", offset=(-0.5, -0.5)
        ),
        skeleton=COCO,
        hidden={
            "heatmaps": f"{call}Sigmoid:0",
            "centre": f"{call}Sigmoid_1:0",
            "regression.x": f"{call}add_3:0",
            "regression.y": f"{call}add_2:0",
        },
        taps=(
            f"{features}re_lu_2/Relu_Relu__101:0",
            f"{features}re_lu_1/Relu_Relu__99:0",
            f"{features}re_lu/Relu_Relu__97:0",
            f"{features}model/out_relu/Relu6_Relu6__94:0",
        ),
    )


def blazepose() -> PoseSpec:
    """MediaPipe's BlazePose (lite, full, heavy): 33 landmarks and 6 auxiliary points."""
    return PoseSpec(
        name="blazepose",
        input=NetInput(name="input_1", height_px=256, width_px=256, layout="nhwc", batch=1),
        crop=NetCrop(kind="turned", margin=1.25),
        decoder=NetDecoder(
            kind="keypoints",
            outputs=("Identity",),
            columns=("x", "y", "z", "visibility", "presence"),
            points=39,
            unit="corner",
            score="logit",
        ),
        skeleton=BLAZEPOSE_33,
        hidden={"heatmaps": "Identity_3_raw_output___9:0", "flag": "Identity_1"},
        logits=("Identity_3_raw_output___9:0",),
        taps=("model_1/model/add_11/add", "Relu6__106:0", "Relu6__179:0"),
    )


def facemesh() -> PoseSpec:
    """MediaPipe's face mesh: 468 points without scores, and a flag."""
    block = "StatefulPartitionedCall/model_1/p_re_lu_"
    return PoseSpec(
        name="facemesh",
        input=NetInput(name="input_1", height_px=192, width_px=192, layout="nhwc"),
        crop=NetCrop(kind="box", margin=1.5),
        decoder=NetDecoder(
            kind="keypoints", outputs=("output_mesh",), columns=("x", "y", "z"), unit="corner", score="none"
        ),
        skeleton=FACE_468,
        hidden={"flag": "output_faceflag"},
        taps=(f"{block}6/Relu:0", f"{block}9/Relu:0", f"{block}12/Relu:0", f"{block}15/Relu:0"),
    )
