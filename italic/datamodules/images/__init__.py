"""Sources of images: CIFAR-10, small ImageNet, the photographs of scikit-image, image folders."""

from italic.datamodules.images.cifar10 import CIFAR10 as CIFAR10
from italic.datamodules.images.files import DataError as DataError
from italic.datamodules.images.folder import Folder as Folder
from italic.datamodules.images.imagenet import DownsampledImageNet as DownsampledImageNet
from italic.datamodules.images.imagenet import TinyImageNet as TinyImageNet
from italic.datamodules.images.photos import Photos as Photos
from italic.datamodules.images.sources import Split as Split
