"""Rivals of NMTune, each from its paper, written as an extension.

f is a sample's feature [D], y its class of C, z the output of the two-layer head (paper 1, section
4), p = softmax(logits). Every loss is a mean over the rows of a batch. The last three train the
encoder: e are its weights, h those of a linear head, and e0, h0 the same at the start. The test of
this file writes each equation out once more, in plain numpy, and compares.
"""

import torch
from torch import nn
from torch.nn import functional


class Mlp(nn.Module):
    """The two-layer head alone: z = W2 relu(W1 f + b1) + b2, a classifier on z, cross-entropy."""

    hyperparameters = {}

    def __init__(self, dim, outputs):
        super().__init__()
        self.first = nn.Linear(dim, 4 * dim)
        self.second = nn.Linear(4 * dim, dim)
        self.classifier = nn.Linear(dim, outputs)

    def forward(self, features):
        z = self.second(self.first(features).relu())
        return self.classifier(z), z

    def loss(self, batch):
        logits, _ = self.forward(batch.features)
        return {"ce": batch.task_loss(logits)}


class LabelSmoothing(Mlp):
    """Label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7).

    L = - sum_c q_c log p_c,  q_c = (1 - s) [c = y] + s / C
    """

    hyperparameters = {"smoothing": (0.0, 1.0)}

    def loss(self, batch):
        logits, _ = self.forward(batch.features)
        log_p = logits.log_softmax(1)
        smoothing = batch.hyper["smoothing"]
        right = functional.nll_loss(log_p, batch.targets)
        even = -log_p.mean(1).mean()
        return {"ce": (1 - smoothing) * right + smoothing * even}


class FeatureMixup(Mlp):
    """Mixup (Zhang et al. 2018, arXiv 1710.09412, equation 1) of frozen features.

    f' = m f_i + (1 - m) f_j,  L = m CE(f', y_i) + (1 - m) CE(f', y_j),  m ~ Beta(a, a), a <= 1

    One m for a batch; j is a random order of its rows. Beta by Joehnk's rule (1964): of uniform u
    and v with u^(1/a) + v^(1/a) <= 1, m = u^(1/a) / (u^(1/a) + v^(1/a)), the first of 64 draws that
    fits. So each configuration of a stack has its own a and the same draws.
    """

    hyperparameters = {"alpha": (0.05, 1.0)}

    def loss(self, batch):
        m = beta(batch.hyper["alpha"])
        order = torch.randperm(len(batch.features), device=batch.features.device)
        mixed = m * batch.features + (1 - m) * batch.features[order]
        logits, _ = self.forward(mixed)
        one = functional.cross_entropy(logits, batch.targets)
        other = functional.cross_entropy(logits, batch.targets[order])
        return {"ce": m * one + (1 - m) * other}


def beta(alpha):
    """A draw of Beta(alpha, alpha), alpha in (0, 1]; the logarithms keep small powers apart."""
    u, v = torch.rand(2, 64, device=alpha.device).log() / alpha
    total = torch.logaddexp(u, v)
    first = torch.where(total <= 0, 1.0, 0.0).argmax(keepdim=True)
    return (u - total).exp().gather(0, first)[0]


class Bss(Mlp):
    """Batch spectral shrinkage (Chen et al., NeurIPS 2019, equation 3), on the head's z.

    L = CE + eta sum_{i=1..k} sigma_{-i}^2, the squares of the k = 1 smallest singular values of the
    batch's z [R, D]. They are eigenvalues of z z^T or z^T z, whichever is smaller.
    """

    hyperparameters = {"eta": (0.0, None)}

    def loss(self, batch):
        logits, z = self.forward(batch.features)
        z = z.double()
        gram = z @ z.mT if z.shape[0] <= z.shape[1] else z.mT @ z
        smallest = torch.linalg.eigvalsh(gram)[0].clamp_min(0)
        return {"ce": batch.task_loss(logits), "bss": batch.hyper["eta"] * smallest.float()}


class Whitened(nn.Module):
    """A linear head on features whitened with a shrunken covariance (Ledoit and Wolf 2004).

    S' = (1 - s) S + s (tr S / D) I,  g = S'^(-1/2) (f - mean),  classifier on g, cross-entropy.
    S and the mean are those of all training rows; the shrinkage s is searched.
    """

    hyperparameters = {"shrinkage": (0.0, 1.0)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))
        self.classifier = nn.Linear(dim, outputs)

    def prepare(self, features, targets, hyper):
        rows = features.double()
        values, vectors = torch.linalg.eigh(torch.cov(rows.mT, correction=0))
        shrunk = shrink(values, hyper["shrinkage"])
        self.mean = rows.mean(0).float()
        self.whitening = (vectors * shrunk.rsqrt() @ vectors.mT).float()

    def forward(self, features):
        z = (features - self.mean) @ self.whitening
        return self.classifier(z), z

    def loss(self, batch):
        logits, _ = self.forward(batch.features)
        return {"ce": batch.task_loss(logits)}


def shrink(eigenvalues, share):
    """The eigenvalues of (1 - s) S + s (tr S / D) I, kept above 1e-10 of their mean."""
    mean = eigenvalues.clamp_min(0).mean()
    return ((1 - share) * eigenvalues + share * mean).clamp_min(1e-10 * mean)


class Lda(nn.Module):
    """Linear discriminant analysis with a shrunken covariance (Friedman 1989), solved at once.

    logits_c = m_c^T W f - m_c^T W m_c / 2 + log(n_c / n),  W = S'^(-1), S the covariance within
    classes, S' = (1 - s) S + s (tr S / D) I.
    """

    hyperparameters = {"shrinkage": (0.0, 1.0)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, dim))
        self.register_buffer("bias", torch.zeros(outputs))

    def prepare(self, features, targets, hyper):
        rows, classes = features.double(), len(self.bias)
        counts = torch.bincount(targets, minlength=classes).double()
        means = torch.zeros(classes, rows.shape[1], dtype=torch.float64)
        means = means.to(rows.device).index_add(0, targets, rows) / counts[:, None]
        within = rows - means[targets]
        values, vectors = torch.linalg.eigh(within.mT @ within / len(rows))
        inverse = vectors / shrink(values, hyper["shrinkage"]) @ vectors.mT
        weight = means @ inverse
        self.weight = weight.float()
        self.bias = ((counts / len(rows)).log() - (weight * means).sum(1) / 2).float()

    def forward(self, features):
        return features @ self.weight.mT + self.bias


class LpFt(nn.Module):
    """LP-FT: linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054).

    h0 = argmin_h CE(h, e0) + l2 / 2 |W|^2,  then CE(h, e) is minimised from (h0, e0)
    """

    hyperparameters = {"l2": (1e-6, None)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.classifier = nn.Linear(dim, outputs)

    def prepare(self, features, targets, hyper):
        probe(self.classifier, features, targets, hyper["l2"])

    def forward(self, features):
        return self.classifier(features)

    def loss(self, encoder, batch):
        return {"ce": batch.task_loss(self.forward(encoder(batch.inputs)))}


@torch.enable_grad()
def probe(layer, features, targets, l2):
    """Logistic regression to convergence, in float64; the bias has no penalty."""
    rows = features.double()
    weight = torch.zeros_like(layer.weight, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros_like(layer.bias, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(rows, weight, bias), targets)
        loss = loss + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)


class WiseFt(LpFt):
    """WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903): a weighted mean of two sets of weights.

    (h, e) = (1 - alpha) (h0, e0) + alpha (h1, e1)

    (h1, e1) are the weights after fine-tuning from (h0, e0). The paper's h0 is CLIP's zero-shot
    head. An encoder without a text tower has none, so h0 is the linear probe, as in LP-FT.
    """

    hyperparameters = {"l2": (1e-6, None), "alpha": (0.0, 1.0)}

    def __init__(self, dim, outputs):
        super().__init__(dim, outputs)
        self.register_buffer("start_weight", torch.zeros(outputs, dim))
        self.register_buffer("start_bias", torch.zeros(outputs))

    def prepare(self, features, targets, hyper):
        super().prepare(features, targets, hyper)
        self.start_weight.copy_(self.classifier.weight)
        self.start_bias.copy_(self.classifier.bias)

    def finish(self, encoder, hyper):
        pairs = [(weight, encoder.start[name]) for name, weight in encoder.weights.items()]
        pairs += [(self.classifier.weight, self.start_weight)]
        pairs += [(self.classifier.bias, self.start_bias)]
        for end, start in pairs:
            end.copy_(start.lerp(end, hyper["alpha"]))


class L2Sp(nn.Module):
    """L2-SP (Li et al. 2018, arXiv 1802.01483): weight decay towards the start.

    L = CE + alpha / 2 |e - e0|^2 + beta / 2 |h|^2;  the space has no weight decay beside it
    """

    hyperparameters = {"alpha": (0.0, None), "beta": (0.0, None)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.classifier = nn.Linear(dim, outputs)

    def forward(self, features):
        return self.classifier(features)

    def loss(self, encoder, batch):
        logits = self.forward(encoder(batch.inputs))
        moved = sum((w - encoder.start[n]).square().sum() for n, w in encoder.weights.items())
        head = sum(value.square().sum() for value in self.parameters())
        return {
            "ce": batch.task_loss(logits),
            "sp": batch.hyper["alpha"] / 2 * moved,
            "head": batch.hyper["beta"] / 2 * head,
        }
