# SPDX-License-Identifier: Apache-2.0
# Two optimisers in step: Muon (momentum, then the nearest orthogonal matrix by Newton-Schulz) for the matrices of
# attention and experts, AdamW for embeddings, head, router and norms. Called by train.py.

import torch

# Coefficients of the quintic Newton-Schulz iteration of Keller Jordan's Muon.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(g, steps=5):
    """The orthogonal factor of each matrix of g [N, R, C], approximately."""
    a, b, c = QUINTIC
    x = g.bfloat16()
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if flip else x).to(g.dtype)


class Muon:
    """Matrices of one shape are handled in one batch."""

    def __init__(self, params, momentum=0.95, decay=0.05):
        self.momentum, self.decay = momentum, decay
        self.groups = {}
        for p in params:
            self.groups.setdefault(p.shape[-2:], []).append(p)
        self.buffers = {id(p): torch.zeros_like(p) for p in params}

    @torch.no_grad()
    def step(self, lr):
        for shape, params in self.groups.items():
            updates = []
            for p in params:
                m = self.buffers[id(p)]
                m.lerp_(p.grad, 1 - self.momentum)
                updates.append(p.grad.lerp(m, self.momentum).reshape(-1, *shape))
            counts = [u.shape[0] for u in updates]
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for p, u in zip(params, orthogonalise(torch.cat(updates)).split(counts)):
                p.mul_(1 - lr * self.decay).add_(u.reshape(p.shape), alpha=-lr * scale)
                p.grad = None


class Optimizer:
    """step(factor): one update with all learning rates times `factor`."""

    def __init__(self, model, muon_lr, adam_lr):
        matrices, others = [], []
        for name, p in model.named_parameters():
            last = name.split(".")[-1]
            (matrices if last in ("q", "k", "v", "o", "gate_up", "down") else others).append(p)
        self.muon, self.muon_lr, self.adam_lr = Muon(matrices), muon_lr, adam_lr
        self.adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0,
                                      fused=others[0].is_cuda)

    def step(self, factor):
        self.muon.step(self.muon_lr * factor)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state(self):
        """Copies of momentum and moments."""
        muon = {k: v.clone() for k, v in self.muon.buffers.items()}
        adam = [{k: v.clone() for k, v in self.adam.state[p].items()} for p in self.adam.param_groups[0]["params"]]
        return muon, adam

    @torch.no_grad()
    def restore(self, state):
        for k, v in state[0].items():
            self.muon.buffers[k].copy_(v)
        for p, saved in zip(self.adam.param_groups[0]["params"], state[1]):
            for k, v in saved.items():
                self.adam.state[p][k].copy_(v)
