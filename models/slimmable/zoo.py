"""The weights that the authors released, with what they publish of each width: GMACs/top-1 (ILSVRC-2012, val).

The files may be used for purposes that are not commercial. Most are archives that pack one torch file.
"""

from torchvision.models import Weights

from ..zoo import AdaptiveWeights, enter, released

PAGE = "https://github.com/JiahuiYu/slimmable_networks"
FILES = f"{PAGE}/files"  # attached to issues there; the others are on Google Drive


def _weights(model: str, num_params: int, figures: str, file: str) -> Weights:
    about = {"recipe": f"{PAGE}#performance", "license": "CC BY-NC 4.0"}
    return released(f"{model}_imagenet", num_params, figures, model=model, file=file, **about)


# fmt: off
US_MOBILENET_V1 = """
1.0=0.569/71.8 0.975=0.543/71.7 0.95=0.518/71.6 0.925=0.491/71.3 0.9=0.466/71.3 0.875=0.443/70.9 0.85=0.421/70.6
0.825=0.389/70.3 0.8=0.366/69.8 0.775=0.345/69.7 0.75=0.325/69.5 0.725=0.306/69.1 0.7=0.287/68.8 0.675=0.267/68.3
0.65=0.249/67.8 0.625=0.233/67.5 0.6=0.217/66.8 0.575=0.201/66.3 0.55=0.177/65.6 0.525=0.163/65.0 0.5=0.149/64.2
0.475=0.137/63.5 0.45=0.124/62.7 0.425=0.115/61.9 0.4=0.100/61.0 0.375=0.090/60.0 0.35=0.080/59.0 0.325=0.071/58.1
0.3=0.064/57.3 0.275=0.048/55.8 0.25=0.041/55.7"""
US_MOBILENET_V2 = """
1.0=0.301/71.5 0.975=0.300/71.5 0.95=0.285/71.2 0.925=0.274/71.1 0.9=0.269/70.9 0.875=0.268/70.9 0.85=0.254/70.6
0.825=0.235/70.1 0.8=0.222/70.0 0.775=0.214/69.8 0.75=0.209/69.6 0.725=0.185/69.3 0.7=0.174/68.9 0.675=0.166/68.6
0.65=0.162/68.3 0.625=0.161/68.3 0.6=0.151/67.6 0.575=0.150/67.6 0.55=0.107/65.6 0.525=0.100/65.4 0.5=0.097/65.1
0.475=0.096/64.9 0.45=0.089/64.2 0.425=0.088/64.2 0.4=0.081/63.4 0.375=0.080/63.3 0.35=0.059/62.3"""


class S_ResNet50_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("s_resnet50", 25_636_712, "1.0=4.089/76.0 0.75=2.323/74.9 0.5=1.052/72.1 0.25=0.278/65.0",
                            "1f6q37OkZaz_0GoOAwllHlXNWuKwor2fC")


class S_MobileNet_V1_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("s_mobilenet_v1", 4_264_808,
                            "1.0=0.569/71.5 0.75=0.325/69.5 0.5=0.149/64.8 0.25=0.041/53.1",
                            f"{FILES}/2709079/s_mobilenet_v1_0.25_0.5_0.75_1.0.pt.zip")


class S_MobileNet_V2_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("s_mobilenet_v2", 3_556_456,
                            "1.0=0.301/70.5 0.75=0.209/68.9 0.5=0.097/64.4 0.35=0.059/59.7",
                            f"{FILES}/2709080/s_mobilenet_v2_0.35_0.5_0.75_1.0.pt.zip")


class S_ShuffleNet_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("s_shufflenet", 5_487_496, "2.0=0.523/71.4 1.0=0.137/65.5 0.5=0.038/57.2",
                            f"{FILES}/2709082/s_shufflenet_0.5_1.0_2.0.pt.zip")


class US_MobileNet_V1_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("us_mobilenet_v1", 4_231_976, US_MOBILENET_V1,
                            f"{FILES}/2979952/us_mobilenet_v1_calibrated.pt.zip")


class US_MobileNet_V2_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("us_mobilenet_v2", 3_504_872, US_MOBILENET_V2,
                            f"{FILES}/2979953/us_mobilenet_v2_calibrated.pt.zip")


class AutoSlim_MobileNet_V1_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("autoslim_mobilenet_v1", 4_685_904, "3=0.572/73.0 2=0.325/71.5 1=0.150/67.9",
                            f"{FILES}/5166182/autoslim_mobilenet_v1.pt.zip")


class AutoSlim_MobileNet_V2_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("autoslim_mobilenet_v2", 6_564_808, "3=0.505/75.4 2=0.305/74.2 1=0.207/73.0",
                            f"{FILES}/5166194/autoslim_mobilenet_v2.pt.zip")


class AutoSlim_MNasNet_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("autoslim_mnasnet", 8_411_232, "3=0.532/75.4 2=0.315/74.6 1=0.217/73.2",
                            "1tEuMYc_F-4MUYPua8KAIKjEd7eJDVSx2")


class AutoSlim_ResNet50_Weights(AdaptiveWeights):
    V1 = DEFAULT = _weights("autoslim_resnet50", 23_301_816, "4=3.005/76.0 3=2.006/75.6 2=1.000/74.0 1=0.570/72.2",
                            "1WOOu6frdfGo1_nyHdaMpRILPATtzVAMT")
# fmt: on


enter(S_ResNet50_Weights, S_MobileNet_V1_Weights, S_MobileNet_V2_Weights, S_ShuffleNet_Weights)
enter(US_MobileNet_V1_Weights, US_MobileNet_V2_Weights, AutoSlim_MobileNet_V1_Weights, AutoSlim_MobileNet_V2_Weights)
enter(AutoSlim_MNasNet_Weights, AutoSlim_ResNet50_Weights)
