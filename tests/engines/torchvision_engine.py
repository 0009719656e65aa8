"""An engine whose import meets a torchvision that was built for another torch."""


def prepare(settings: object) -> None:
    raise RuntimeError("operator torchvision::nms does not exist")
