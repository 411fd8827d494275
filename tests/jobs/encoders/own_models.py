"""An extension with encoders, sound and faulty ones."""

import torch

from jobs.extensions.spec import Extension
from jobs.images.spec import ImageInput

MINE = '''
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 4, stride=4)
        self.norm = nn.BatchNorm2d(width)

    def map(self, images):
        return self.norm(self.stem(images)).relu()

    def forward(self, images):
        return self.map(images).mean((2, 3))

def small(image, width=8):
    """A small network."""
    return Net(image.channels, width)

class Noisy(Net):
    def __init__(self, *args):
        super().__init__(*args)
        with torch.no_grad():
            self.stem.bias.add_(float(np.random.default_rng().random()))

class Unused(Net):
    def __init__(self, *args):
        super().__init__(*args)
        self.more = nn.Linear(2, 2)

class Beside(Net):
    def forward(self, images):
        found = super().forward(images)
        return found - found.mean(0)

class Hidden(Net):
    def __init__(self, *args):
        super().__init__(*args)
        self.factor = float(torch.rand(()))

    def forward(self, images):
        return super().forward(images) * self.factor

class Drawn(Net):
    def forward(self, images):
        return super().forward(images) + torch.rand(8)

class Broken(Net):
    def forward(self, images):
        return self.stem(images, self.nothing)

class Flat(Net):
    def forward(self, images):
        return super().forward(images).flatten()

class Bare(nn.Module):
    def __init__(self, image):
        super().__init__()
        self.layer = nn.Linear(image.channels, 4)

    def forward(self, images):
        return self.layer(images.mean((2, 3)))

def bare(image):
    return Bare(image)

class Words(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.mlp = nn.Linear(width, width)

    def forward(self, ids, mask):
        return self.mlp(self.table(ids))

class Padded(Words):
    def forward(self, ids, mask):
        found = super().forward(ids, mask)
        return found - found.mean(1, keepdim=True)

def words(text, width=8):
    """A vector for each word."""
    return Words(text.vocabulary, width)

def padded(text):
    return Padded(text.vocabulary, 8)

def noisy(image): return Noisy(image.channels, 8)
def unused(image): return Unused(image.channels, 8)
def beside(image): return Beside(image.channels, 8)
def hidden(image): return Hidden(image.channels, 8)
def drawn(image): return Drawn(image.channels, 8)
def broken(image): return Broken(image.channels, 8)
def flat(image): return Flat(image.channels, 8)
def nothing(image): return None
def asks(image, width): return Net(image.channels, width)
def _helper(image): return image
'''
SOURCE = Extension.of("mine", MINE)
IMAGE = ImageInput(size=16, channels=1, mean=(0.5,), std=(0.5,))
PIXELS = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
