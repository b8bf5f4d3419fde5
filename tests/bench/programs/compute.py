"""The compute script of the programs benchmark: dictionaries, lists, strings, integers, floats."""
import collections
import json
import re


def noise(seed):
    while True:
        seed = (seed * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        yield seed >> 33


class Body:
    def __init__(self, position, mass):
        self.position, self.speed, self.mass = position, [0.0, 0.0, 0.0], mass

    def pull(self, other, step):
        d = [a - b for a, b in zip(other.position, self.position)]
        square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + 0.01
        force = step * other.mass / (square * square ** 0.5)
        for i in range(3):
            self.speed[i] += force * d[i]


def words(numbers, count):
    counter = collections.Counter()
    names = {}
    for _ in range(count):
        n = next(numbers)
        word = f"{n % 5003:x}-{'abc'[n % 3]}"
        counter[word] += 1
        names.setdefault(word[0], []).append(word)
    return counter.most_common(5), sorted((k, len(v), max(v)) for k, v in names.items())


def floats(rounds):
    bodies = [Body([i * 1.5, i * i * 0.25, 3.0 - i], 1.0 + i) for i in range(5)]
    for _ in range(rounds):
        for body in bodies:
            for other in bodies:
                if other is not body:
                    body.pull(other, 0.001)
        for body in bodies:
            body.position = [p + 0.001 * s for p, s in zip(body.position, body.speed)]
    return [round(x, 9) for body in bodies for x in body.position]


def sieve(limit):
    composite = bytearray(limit)
    total = 0
    for i in range(2, limit):
        if not composite[i]:
            total += i
            for j in range(i * i, limit, i):
                composite[j] = 1
    return total


def integers(count):
    a, b = 0, 1
    for _ in range(count):
        a, b = b, a + b
    return sum(map(int, str(a))), pow(a, 65537, (1 << 521) - 1) % 1000003


def lists(numbers, count):
    values = [next(numbers) for _ in range(count)]
    ordered = sorted(values, key=lambda v: (v % 1000, v))
    squares = [v * v for v in ordered[::7] if v & 1]
    groups = {}
    for v in values:
        groups.setdefault(v % 97, set()).add(v // 97)
    return ordered[:3], sum(squares) % 1000000007, max(len(g) for g in groups.values())


def text(numbers, count):
    lines = [f"{next(numbers) % 10000:05d} user{next(numbers) % 50} GET /{next(numbers):x}" for _ in
             range(count)]
    pattern = re.compile(r"(\d+) (user\d+) GET /([0-9a-f]+)")
    seen = {}
    for line in lines:
        number, user, path = pattern.match(line).groups()
        seen.setdefault(user, []).append((int(number), path.upper()))
    data = json.loads(json.dumps(seen, sort_keys=True))
    return sum(len(v) for v in data.values()), " ".join(sorted(data))[:60]


def main():
    numbers = noise(42)
    print(words(numbers, 300000))
    print(floats(6000))
    print(sieve(1500000))
    print(integers(20000))
    print(lists(numbers, 200000))
    print(text(numbers, 60000))


main()
