"""What a rate limit per minute is held to."""


def fullest_minute(sent):
    """The largest sum of amounts within any 60 seconds of (time, amount)."""
    sent = sorted(sent)
    best = total = first = 0
    for time, amount in sent:
        total += amount
        while sent[first][0] <= time - 60:
            total -= sent[first][1]
            first += 1
        best = max(best, total)
    return best
