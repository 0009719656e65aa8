"""Which machine holds which workers of a run, while machines come and go."""

from collections.abc import Sequence
from itertools import accumulate, pairwise


class Berths:
    """Groups of workers, each of which one machine holds at a time: what spans workers of a group stays on a machine.

    Examples
    --------
    >>> berths = Berths([2, 2])
    >>> berths.take("red", 2), berths.take("blue", 3), berths.take("green", 8)
    ((0, 1), (2, 3), ())
    >>> berths.leave("red"), berths.vacant, berths.take("green", 1)
    ((0, 1), (0, 1), (0,))
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        bounds = accumulate(sizes, initial=0)
        self.groups = tuple(tuple(range(low, high)) for low, high in pairwise(bounds))
        """Workers are numbered group by group."""
        self._holders: dict[int, str] = {}
        """By number of the group."""
        self._taken: dict[int, str] = {}
        """By worker."""

    @property
    def vacant(self) -> tuple[int, ...]:
        """Workers that no machine holds."""
        return tuple(worker for group in self.groups for worker in group if worker not in self._taken)

    def holds(self, machine: str) -> bool:
        """Tell whether a machine holds any workers."""
        return machine in self._holders.values()

    def take(self, machine: str, room: int) -> tuple[int, ...]:
        """Give a machine the groups that nobody holds, as far as it has room, the largest that fit first.

        Where none fits it takes a part of the smallest, and the rest of that group stays vacant.
        """
        taken: list[int] = []
        while room > len(taken):
            free = [number for number in range(len(self.groups)) if number not in self._holders]
            fitting = [number for number in free if len(self.groups[number]) <= room - len(taken)]
            if not free or (taken and not fitting):
                break
            number = (
                max(fitting, key=lambda n: (len(self.groups[n]), -n))
                if fitting
                else min(free, key=lambda n: (len(self.groups[n]), n))
            )
            self._holders[number] = machine
            taken += self.groups[number][: room - len(taken)]
        self._taken |= dict.fromkeys(taken, machine)
        return tuple(taken)

    def leave(self, machine: str) -> tuple[int, ...]:
        """Take its workers from a machine; gives them."""
        self._holders = {number: holder for number, holder in self._holders.items() if holder != machine}
        left = tuple(sorted(worker for worker, holder in self._taken.items() if holder == machine))
        for worker in left:
            del self._taken[worker]
        return left


def group_sizes(found: Sequence[int], num_workers: int | None) -> tuple[int, ...]:
    """Say how many workers each host of a run has.

    Parameters
    ----------
    found
        Workers that the machines have which are there.
    num_workers
        That the run is to have; None: as many as there are. More than there are wait for machines like the largest.

    Examples
    --------
    >>> group_sizes([2, 4], None), group_sizes([2, 4], 3), group_sizes([2, 4], 11)
    ((2, 4), (2, 1), (2, 4, 4, 1))
    """
    wanted = sum(found) if num_workers is None else num_workers
    sizes: list[int] = []
    for size in [*found, *[max(found, default=1)] * wanted]:
        if sum(sizes) < wanted and size > 0:
            sizes.append(min(size, wanted - sum(sizes)))
    return tuple(sizes)
