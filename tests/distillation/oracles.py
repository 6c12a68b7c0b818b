"""Every loss written out once more: NumPy, float64, loops, whole numbers of examples.

Each takes what the loss takes and returns what it returns; `where` is None or Boolean.
"""

import itertools

import numpy as np


def softmax(z):
    z = np.exp(z - z.max())
    return z / z.sum()


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def by_position(one, *arrays, where):
    """`one` at each position, then the mean over those of an example that count."""
    shape = arrays[0].shape[:-1]
    each = np.zeros(shape)
    for at in np.ndindex(*shape):
        if where is None or where[at]:
            each[at] = one(*(a[at] for a in arrays))
    if where is None:
        return each
    return np.array(
        [
            row[keep].mean() if keep.any() else 0.0
            for row, keep in zip(each, where, strict=True)
        ]
    )


def soft_targets(s, t, where, *, temperature):
    def one(s, t):
        return temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))

    return by_position(one, s, t, where=where)


def reverse_kl(s, t, where, *, temperature):
    return soft_targets(t, s, where, temperature=temperature)


def jensen_shannon(s, t, where, *, beta, temperature):
    def one(s, t):
        p, q = softmax(t / temperature), softmax(s / temperature)
        m = beta * p + (1 - beta) * q
        return temperature**2 * (beta * kl(p, m) + (1 - beta) * kl(q, m))

    return by_position(one, s, t, where=where)


def mixed_targets(s, t, where, *, weights, temperature):
    def one(s, *ts):
        pairs = zip(weights, ts, strict=True)
        mixed = sum(w * softmax(t / temperature) for w, t in pairs)
        return temperature**2 * kl(mixed, softmax(s / temperature))

    return by_position(one, s, *t, where=where)


def squared(s, t, where):
    return by_position(lambda s, t: ((s - t) ** 2).mean(), s, t, where=where)


def correlated_targets(s, t, where, *, temperature, between, within):
    counted = np.ones(s.shape[:-1], bool) if where is None else where
    pairs = [
        (softmax(s[at] / temperature), softmax(t[at] / temperature))
        for at in np.ndindex(*counted.shape)
        if counted[at]
    ]
    columns = np.array(pairs)  # [N, 2, C]
    rs = [np.corrcoef(columns[:, 0, c], columns[:, 1, c])[0, 1] for c in range(5)]
    down = 1 - np.mean(rs)

    def one(s, t):
        p, q = softmax(s / temperature), softmax(t / temperature)
        across = 1 - np.corrcoef(p, q)[0, 1]
        return temperature**2 * (between * across + within * down)

    return by_position(one, s, t, where=where)


def with_label(one, s, t, where, labels):
    wide = [np.concatenate([x, labels[..., None]], axis=-1) for x in (s, t)]
    return by_position(lambda s, t: one(s[:-1], t[:-1], int(s[-1])), *wide, where=where)


def smoothed_labels(s, t, where, *, labels, smoothing):
    def one(s, _, y):
        log = np.log(softmax(s))
        target = np.full(len(s), smoothing / len(s))
        target[y] += 1 - smoothing
        return -(target * log).sum()

    return with_label(one, s, t, where, labels)


def decoupled_targets(s, t, where, *, labels, temperature, target, others):
    def one(s, t, y):
        p, q = softmax(t / temperature), softmax(s / temperature)
        first = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        p, q = np.delete(p, y), np.delete(q, y)
        second = kl(p / p.sum(), q / q.sum())
        return temperature**2 * (target * first + others * second)

    return with_label(one, s, t, where, labels)


def normalized_targets(s, t, where, *, labels, temperature, others):
    def one(s, t, y):
        first = -softmax(t)[y] * np.log(softmax(s)[y])
        p, q = (np.delete(softmax(z / temperature), y) for z in (t, s))
        p, q = p / p.sum(), q / q.sum()
        return first - others * temperature**2 * (p * np.log(q)).sum()

    return with_label(one, s, t, where, labels)


def top_targets(s, t, where, *, k, temperature):
    def one(s, t):
        p, q = softmax(t / temperature), softmax(s / temperature)
        order = np.argsort(-p)[:k]
        kept = np.exp(np.log(p[order]).astype(np.float16).astype(np.float64))
        kept = np.append(kept, np.delete(p, order).sum())
        ours = np.append(q[order], np.delete(q, order).sum())
        return temperature**2 * kl(kept / kept.sum(), ours)

    return by_position(one, s, t, where=where)


def hidden_mse(s, t, where, *, projection):
    return squared(s @ projection, t, where)


def hidden_cosine(s, t, where):
    def one(s, t):
        return 1 - s @ t / np.sqrt((s @ s) * (t @ t))

    return by_position(one, s, t, where=where)


def variational_information(s, t, where, *, projection, spread):
    variance = 1e-5 + np.log1p(np.exp(spread))

    def one(s, t):
        return (np.log(variance) / 2 + (t - s) ** 2 / (2 * variance)).mean()

    return by_position(one, s @ projection, t, where=where)


def examples(one, s, t, where):
    """`one` for each example, with its positions that count as rows."""
    found = []
    for number in range(len(s)):
        keep = np.ones(s.shape[1:-1], bool) if where is None else where[number]
        found.append(one(s[number][keep], t[number][keep]) if keep.any() else 0.0)
    return np.array(found)


def attention_transfer(s, t, where, *, power):
    def one(s, t):
        maps = [(np.abs(x) ** power).sum(axis=-1) for x in (s, t)]
        maps = [q / np.linalg.norm(q) for q in maps]
        return ((maps[0] - maps[1]) ** 2).sum()

    return examples(one, s, t, where)


def attention_scores(s, t, where):
    found = []
    for number in range(len(s)):
        keep = np.ones(s.shape[-1], bool) if where is None else where[number]
        apart = (s - t)[number][:, keep][:, :, keep]
        found.append((apart**2).mean() if keep.any() else 0.0)
    return np.array(found)


def solution_flow(s, t, where):
    found = []
    for number in range(len(s[0])):
        keep = np.ones(s[0].shape[1:-1], bool) if where is None else where[number]
        flows = [
            sum(np.outer(a, b) for a, b in zip(x[number][keep], y[number][keep]))  # noqa: B905
            / max(keep.sum(), 1)
            for x, y in (s, t)
        ]
        found.append(((flows[0] - flows[1]) ** 2).mean() if keep.any() else 0.0)
    return np.array(found)


def self_attention_relations(s, t, where, *, heads):
    s, t = (x if isinstance(x, tuple) else (x, x) for x in (s, t))
    batch, tokens = s[0].shape[:2]
    found = []
    for number in range(batch):
        keep = np.ones(tokens, bool) if where is None else where[number]
        costs = []
        for head in range(heads):
            tables = []
            for a, b in (s, t):
                size = a.shape[-1] // heads
                part = slice(head * size, (head + 1) * size)
                a, b = (x[number][keep][:, part] for x in (a, b))
                tables.append([softmax(row) for row in a @ b.T / np.sqrt(size)])
            costs += [kl(p, q) for q, p in zip(*tables, strict=True)]
        found.append(np.mean(costs) if keep.any() else 0.0)
    return np.array(found)


def batches(one, s, t, where):
    """`one` on the examples that count; 0 for the others."""
    keep = np.ones(len(s), bool) if where is None else where
    found = np.zeros(len(s))
    if keep.any():
        found[keep] = one(*(x[keep].reshape(keep.sum(), -1) for x in (s, t)))
    return found


def similarities(s, t, where):
    def one(s, t):
        grams = [x @ x.T for x in (s, t)]
        grams = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams]
        return ((grams[0] - grams[1]) ** 2).sum(axis=1) / len(s)

    return batches(one, s, t, where)


def huber(x):
    return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5


def relational_distances(s, t, where):
    def one(s, t):
        n = len(s)
        pairs = list(itertools.permutations(range(n), 2))
        far = []
        for x in (s, t):
            d = {(i, j): np.linalg.norm(x[i] - x[j]) for i, j in pairs}
            mean = np.mean(list(d.values())) if d else 1.0
            far.append({at: value / mean for at, value in d.items()})
        found = np.zeros(n)
        for i, j in pairs:
            found[i] += huber(far[0][i, j] - far[1][i, j]) / (n - 1)
        return found

    return batches(one, s, t, where)


def relational_angles(s, t, where):
    def angle(x, i, j, k):
        a, b = x[j] - x[i], x[k] - x[i]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def one(s, t):
        found = []
        for i in range(len(s)):
            others = [n for n in range(len(s)) if n != i]
            costs = [
                huber(angle(s, i, j, k) - angle(t, i, j, k))
                for j, k in itertools.permutations(others, 2)
            ]
            found.append(np.mean(costs) if costs else 0.0)
        return found

    return batches(one, s, t, where)


def neighbour_probabilities(s, t, where):
    def likely(x, i):
        near = []
        for j in range(len(x)):
            if j != i:
                cosine = x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
                near.append((1 + cosine) / 2)
        return np.array(near) / sum(near)

    def one(s, t):
        return [kl(likely(t, i), likely(s, i)) for i in range(len(s))]

    return batches(one, s, t, where)


def contrastive(s, t, where, *, bank, negatives, projections, temperature):
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    count, size = negatives.shape[1], bank.shape[-1]
    cosines = np.linspace(-1, 1, 200_001)
    density = (1 - cosines**2) ** ((size - 3) / 2)
    mean = (density * np.exp(cosines / temperature)).sum() / density.sum()
    noise = count * mean
    found = np.zeros(len(s))
    for i in range(len(s)):
        if where is not None and not where[i]:
            continue
        a, b = unit(s[i] @ projections[0]), unit(t[i] @ projections[1])

        def h(x, y):
            return 1 / (1 + noise * np.exp(-(x @ y) / temperature))

        found[i] = -2 * np.log(h(a, b))
        for n in negatives[i]:
            found[i] -= np.log(1 - h(a, bank[1][n])) + np.log(1 - h(bank[0][n], b))
    return found
