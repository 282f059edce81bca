"""How the Redis backend keeps statuses on a cluster: spread over shards, each with an index of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ...backend import Listed, Query, answered
from ...cursor import Cursor
from ...errors import BackendError, StoreRefused
from ...record import ACTOR_NAME, QUEUE_NAME
from ...update import Kind, Outcome, Update, is_stored
from .._query import wanted_by
from .backend import (
    LIST,
    NEWEST,
    PASSES_A_PAGE,
    UPDATE,
    UPDATES_A_CALL,
    RedisBackend,
    filter_of,
    to_record,
)
from .cluster import SHARDS, TAGS, Cluster, Command, Errand, Node, shard_of
from .connection import coded, failure_of, pack
from .protocol import OUTCOMES, UNLISTED, IndexArguments, delete_arguments, may_repeat
from .script import Script, ServerClock

#: Notes a message in one set of the index.
INDEX: Final = Script.load("index.lua")

#: How many messages a shard is asked for first, on top of twice its share of a page.
_MORE: Final = 8

#: Among how many unfinished messages of a shard a count looks for expired
#: ones: together more than a single server does, as not all have the same number.
_CHECKED: Final = 64

#: Maximum number of times that a message is listed again while its state goes on changing.
_LISTINGS: Final = 4


class _Call(Errand):
    """A call of a script.

    Parameters:
      shard(int)
      script(Script)
      keys(Sequence[str])
      arguments(Callable): Makes the arguments for a node, told whether
        the slot is on its way there.
      again(bool)
    """

    __slots__ = ("_arguments", "_keys", "_script")

    def __init__(
        self,
        shard: int,
        script: Script,
        keys: Sequence[str],
        arguments: Callable[[ServerClock, bool], Sequence[Any]],
        *,
        again: bool = True,
    ) -> None:
        super().__init__(shard, again=again)
        self._script = script
        self._keys = keys
        self._arguments = arguments

    @property
    def script(self) -> Script:
        return self._script

    def command(self, node: Node) -> bytes:
        arguments = self._arguments(node.clock, self.asking)
        return pack("EVALSHA", self._script.sha, len(self._keys), *self._keys, *arguments)


class _Updates(_Call):
    """Updates of messages of one shard.

    Parameters:
      shards(Shards)
      shard(int)
      updates(list): Places among the outcomes, message ids and updates.
    """

    __slots__ = ("_shards", "updates")

    def __init__(self, shards: Shards, shard: int, updates: list[tuple[int, str, Update]]) -> None:
        self._shards = shards
        self.updates = updates
        backend = shards.backend
        pairs = [(message_id, update) for _, message_id, update in updates]
        super().__init__(
            shard,
            backend._script,
            [shards.key(message_id) for message_id, _ in pairs],
            lambda clock, asking: backend._arguments(pairs, clock, shards.index_arguments(shard, asking)),
            again=may_repeat(pairs),
        )

    def parts(self) -> Sequence[Errand]:
        found: dict[str, list[tuple[int, str, Update]]] = {}
        for item in self.updates:
            found.setdefault(item[1], []).append(item)
        if len(found) == 1:
            return (self,)
        return [_Updates(self._shards, self.shard, updates) for updates in found.values()]


class Shards:
    """What a Redis backend does where its server is a cluster.

    Parameters:
      backend(RedisBackend)
      cluster(Cluster)
      namespace(str): Escaped.
      max_listed(int)
    """

    def __init__(self, backend: RedisBackend, cluster: Cluster, namespace: str, max_listed: int) -> None:
        self.backend = backend
        self.cluster = cluster
        self._prefixes = [f"{namespace}:{{{tag}}}:" for tag in TAGS]
        #: What the keys of the index start with.
        self._indexes = [f"{namespace} index:{{{tag}}}:" for tag in TAGS]
        self._size = -(-max_listed // SHARDS)

    def key(self, message_id: str) -> str:
        """The key of a message's record, and its channel."""
        return self._prefixes[shard_of(message_id)] + message_id

    def index_arguments(self, shard: int, asking: bool) -> IndexArguments:
        """What the script is told of a shard's index: nothing where another node may have parts of it."""
        listed = self._size and not asking
        return self._size, len(self._prefixes[shard]), self._indexes[shard] if listed else ""

    # Writing

    def update(self, message_id: str, update: Update) -> Outcome:
        outcomes, failures = self._update([(message_id, update)])
        if failures:
            raise failures[0]
        return outcomes[0]

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        outcomes, failures = self._update(updates)
        answered = any(outcome is not Outcome.UNAVAILABLE for outcome in outcomes)
        refusal = next((failure for failure in failures if isinstance(failure, StoreRefused)), None)
        if refusal is not None:
            if len(updates) == 1:
                raise refusal
            # One message of a shard was in the way of all others there.
            for index, outcome in enumerate(outcomes):
                if outcome is Outcome.UNAVAILABLE:
                    outcomes[index] = self._update_alone(*updates[index])
                    answered |= outcomes[index] not in (Outcome.UNAVAILABLE, Outcome.UNSTORABLE)
            if not answered:
                raise refusal
        self._check(failures, answered)
        return outcomes

    def _update_alone(self, message_id: str, update: Update) -> Outcome:
        (outcome,), failures = self._update([(message_id, update)])
        return Outcome.UNSTORABLE if failures and isinstance(failures[0], StoreRefused) else outcome

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        errand = _Updates(self, shard_of(message_id), [(0, message_id, update)])
        complete = self.cluster.begin([errand])

        def outcome() -> Outcome:
            outcomes = [Outcome.UNAVAILABLE]
            failures = self._settle(complete(), outcomes)
            self._check(failures, False)
            return outcomes[0]

        return outcome

    def _update(self, updates: Sequence[tuple[str, Update]]) -> tuple[list[Outcome], list[BackendError]]:
        outcomes = [Outcome.UNAVAILABLE] * len(updates)
        failures: list[BackendError] = []
        waiting: dict[int, list[tuple[int, str, Update]]] = {}
        for place, (message_id, update) in enumerate(updates):
            waiting.setdefault(shard_of(message_id), []).append((place, message_id, update))
        # One call a shard at a time: the next one must not overtake it where it is sent elsewhere.
        size = UPDATES_A_CALL
        while waiting:
            errands = [_Updates(self, shard, items[:size]) for shard, items in waiting.items()]
            done = self.cluster.run(errands)
            failures += self._settle(done, outcomes)
            failed = {errand.shard for errand in done if _failure(errand)}
            waiting = {
                shard: items[size:] for shard, items in waiting.items() if len(items) > size and shard not in failed
            }
        return outcomes, failures

    def _settle(self, done: Iterable[Errand], outcomes: list[Outcome]) -> list[BackendError]:
        """Note the outcomes, and return why some are missing."""
        failures: list[BackendError] = []
        # Whether its moment stays what it was, if it has one.
        unlisted: dict[str, bool] = {}
        for errand in done:
            assert isinstance(errand, _Updates)
            failure = _failure(errand)
            if failure is not None:
                failures.append(failure)
                continue
            for (place, message_id, update), number in zip(errand.updates, errand.reply):
                outcomes[place] = outcome = OUTCOMES[number]
                if number >= UNLISTED or (errand.asking and _lists_anew(update, outcome)):
                    unlisted[message_id] = outcome is Outcome.LATE and unlisted.get(message_id, True)
        if unlisted and self._size:
            self._list_anew(unlisted)
        return failures

    def _list_anew(self, unlisted: Mapping[str, bool]) -> None:
        """Note in the index what the script could not while slots move, key
        by key.  Where that fails as well, a list does without these messages.
        """
        listed: dict[str, str] = {}
        try:
            for _ in range(_LISTINGS):
                # The state may have changed since it was read, and another process have listed it.
                unlisted = self._list_changed(unlisted, listed)
                if not unlisted:
                    return
        except BackendError:
            pass

    def _list_changed(self, unlisted: Mapping[str, bool], listed: dict[str, str]) -> dict[str, bool]:
        """Note in the index each message that belongs in another set than it was listed in.

        Parameters:
          unlisted(Mapping[str, bool]): The messages, and whether each keeps its moment.
          listed(dict[str, str]): The sets in which they were listed; it is kept up to date.

        Returns:
          dict[str, bool]: The messages that were listed now.
        """
        states = [self._command(message_id, "HMGET", "s", "Q", "a") for message_id in unlisted]
        ttls = [self._command(message_id, "PTTL") for message_id in unlisted]
        shards = {shard_of(message_id) for message_id in unlisted}
        sets = [Command(shard, pack("SMEMBERS", self._indexes[shard])) for shard in shards]
        self.cluster.run([*states, *ttls, *sets])
        changed: dict[str, bool] = {}
        places: dict[int, dict[str, str]] = {shard: {} for shard in shards}
        errands: list[Errand] = []
        for message_id, state, ttl in zip(unlisted, states, ttls):
            if _failure(state) or _failure(ttl) or state.reply[0] not in ("0", "1", "2", "3") or ttl.reply <= 0:
                continue
            name, lives = _set_of(state.reply, ttl.reply)
            if listed.get(message_id) != name:
                listed[message_id] = places[shard_of(message_id)][message_id] = name
                changed[message_id] = unlisted[message_id]
                errands += self._listing(message_id, name, lives, stays=unlisted[message_id])
        for found in sets:
            if _failure(found) is None:
                errands += self._leaving(found.shard, found.reply, places[found.shard])
        self.cluster.run(errands)
        return changed

    def _listing(self, message_id: str, name: str, lives: int, *, stays: bool) -> Iterable[Errand]:
        """Add a message to a set of the index."""
        shard = shard_of(message_id)
        index = self._indexes[shard]
        moment = self.cluster.clock.now() * 1000
        yield _index_call(shard, index + name, message_id, moment, lives, self._size, "NX" if stays else "CH")
        yield _index_call(shard, index, name, "", lives, self._size, "")

    def _leaving(self, shard: int, names: Iterable[str], places: Mapping[str, str]) -> Iterable[Errand]:
        """Remove messages from all sets of the index except their own: which of them they were in is not known."""
        for other in names:
            ids = [message_id for message_id, name in places.items() if name != other]
            if ids:
                yield Command(shard, pack("ZREM", self._indexes[shard] + other, *ids))

    def _command(self, message_id: str, name: str, *arguments: str) -> Command:
        return Command(shard_of(message_id), pack(name, self.key(message_id), *arguments))

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> list[Any]:
        """Ask the nodes for messages: names and texts in turn for each, nothing, or an error."""
        found = [_failure_to_ask(errand) or errand.reply for errand in self._read(message_ids)]
        failures = [one for one in found if isinstance(one, BackendError)]
        # Where all other nodes are down, too, the next call tries this one at once.
        self._check(failures, len(failures) < len(found))
        return found

    def _read(self, message_ids: Sequence[str]) -> list[Command]:
        errands = [self._command(message_id, "HGETALL") for message_id in message_ids]
        self.cluster.run(errands)
        return errands

    # Listing

    def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        page = self._page(query, limit, after)
        wanted = wanted_by(query).items()
        found: list[Listed] = []
        for (position, message_id), errand in zip(page, self._read([message_id for _, message_id in page])):
            record = answered(to_record(_failure_to_ask(errand) or errand.reply))
            # It may have changed since.
            is_wanted = record is not None and wanted <= record.items()
            found.append(Listed(message_id, record if is_wanted else None, position))
        return found

    def _page(self, query: Query, limit: int, after: Cursor | None) -> list[Cursor]:
        """Return the positions and ids of a page's messages.

        Each shard is asked for somewhat more than its share. A shard all of whose
        messages are on the page is then asked for a whole page.
        """
        ask = min(limit, limit // SHARDS * 2 + _MORE)
        lists = self._lists(query, range(SHARDS), ask, after)
        newest = _newest(lists, limit)
        last = newest[-1] if len(newest) == limit else (0, "")
        full = [shard for shard, found in lists.items() if len(found) >= ask and found[-1] > last]
        if full and ask < limit:
            lists.update(self._lists(query, full, limit, after))
            newest = _newest(lists, limit)
        return newest

    def _lists(self, query: Query, shards: Iterable[int], limit: int, after: Cursor | None) -> dict[int, list[Cursor]]:
        """Return the positions and ids of the newest messages of each shard, of those that come after a cursor."""
        lists = {}
        waiting = list(shards)
        for _ in range(PASSES_A_PAGE):
            again = []
            for errand in self._ask(query, waiting, limit, *(after or NEWEST)):
                more, page = errand.reply
                lists[errand.shard] = [Cursor(int(position), message_id) for position, message_id, _ in page]
                if more:
                    again.append(errand.shard)
            waiting = again
            if not waiting:
                break
        return lists

    def count(self, query: Query) -> int:
        return sum(errand.reply for errand in self._ask(query, range(SHARDS), 0, _CHECKED, ""))

    def _ask(self, query: Query, shards: Iterable[int], *arguments: Any) -> list[Errand]:
        """Ask shards.

        Parameters:
          query(Query)
          shards(Iterable[int])
          *arguments: The script's `ARGV[4]` to `ARGV[6]`.

        Raises:
          BackendError: When one of them does not answer, or its slot is moving: a list
            without its messages would look complete.
        """
        wanted = filter_of(query)

        def errand(shard: int) -> Errand:
            prefix = self._prefixes[shard]
            return _Call(
                shard,
                LIST,
                [self._indexes[shard]],
                lambda clock, asking: (*wanted, *arguments, prefix, 2 if asking else 0),
            )

        done = self.cluster.run([errand(shard) for shard in shards])
        for found in done:
            failure = _failure(found)
            if failure is not None:
                raise _failure_to_list(found) or failure
        return done

    # Deleting

    def delete(self, message_id: str) -> bool:
        shard = shard_of(message_id)
        errand = _Call(
            shard,
            UPDATE,
            [self.key(message_id)],
            lambda clock, asking: delete_arguments(self.index_arguments(shard, asking)),
        )
        self.cluster.run([errand])
        failure = _failure(errand)
        if failure is not None:
            raise failure
        return OUTCOMES[errand.reply[0]] is Outcome.APPLIED

    def _check(self, failures: Sequence[BackendError], answered: bool) -> None:
        """Raise where it is not one node of many that does not answer, but the cluster."""
        if failures and not answered and ("cluster is down" in str(failures[0]) or not self.cluster.goes_on()):
            raise failures[0]


def _lists_anew(update: Update, outcome: Outcome) -> bool:
    """Whether an update may have had its message listed elsewhere, or anew."""
    if outcome is Outcome.LATE:
        return ACTOR_NAME in update.fields or QUEUE_NAME in update.fields
    moves = update.kind is Kind.ENQUEUE or update.start or update.create or update.state is not None
    return moves and is_stored(outcome)


def _set_of(names: tuple[str, str | None, str | None], ttl: int) -> tuple[str, int]:
    """The name of the set that a message belongs in, and how long its messages live, in milliseconds.

    Parameters:
      names(tuple): State, queue and actor of the message.
      ttl(int): How long its record has left to live, in milliseconds.
    """
    state, queue, actor = names
    unit = 10 ** max(0, len(str(ttl)) - 2)
    rounded = -(-ttl // unit) * unit
    return f"{state}\n{'' if state < '2' else rounded}\n{queue or ''}\n{actor or ''}", rounded


def _index_call(shard: int, key: str, *arguments: Any) -> _Call:
    return _Call(shard, INDEX, [key], lambda clock, asking: arguments)


def _failure(errand: Errand) -> BackendError | None:
    """Return the error of an errand without a reply, or with an error as its reply; None without an error."""
    if errand.error is None and isinstance(errand.reply, Exception):
        return failure_of(coded(errand.reply))
    return _failure_to_ask(errand)


def _failure_to_list(errand: Errand) -> BackendError | None:
    """Return the last reply of a node whose slot is moving, where there is one: it is a better reason than that the
    time for another attempt is over.
    """
    if isinstance(errand.reply, Exception):
        error = coded(errand.reply)
        if str(error).startswith("TRYAGAIN"):
            return failure_of(error)
    return None


def _failure_to_ask(errand: Errand) -> BackendError | None:
    """Return why an errand has no reply; None where it has one."""
    error = errand.error
    return error if error is None or isinstance(error, BackendError) else failure_of(error)


def _newest(lists: Mapping[int, Iterable[Cursor]], number: int) -> list[Cursor]:
    return sorted((item for found in lists.values() for item in found), reverse=True)[:number]
