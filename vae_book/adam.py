"""Adam as torch has it, in a process that need not wait for ``torch.compile``."""

from inspect import unwrap

import torch
from torch.optim import Optimizer


class Adam(torch.optim.Adam):
    """Adam (Kingma and Ba, 2015, Algorithm 1; chapter 8), to the last bit that of torch.

    Torch's own methods begin by telling ``torch.compile`` to leave them alone, for which they
    import all of it: a second in each process that trains. These are the same methods without that.
    """

    add_param_group = unwrap(Optimizer.add_param_group)
    load_state_dict = unwrap(Optimizer.load_state_dict)
    state_dict = unwrap(Optimizer.state_dict)
    zero_grad = unwrap(Optimizer.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))
