"""One thread for every model: the tests' are so small that handing work to another costs more than doing it."""

import torch

torch.set_num_threads(1)
