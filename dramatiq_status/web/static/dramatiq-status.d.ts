/**
 * `<dramatiq-status>` shows the status of one Dramatiq message, until it is finished.
 *
 * ```html
 * <script type="module" src="/jobs/dramatiq-status.js"></script>
 * <dramatiq-status src="/jobs/ID">Shown until the element is defined</dramatiq-status>
 * ```
 *
 * Attributes: `src` (the URL of the message, without ".json"), or `message-id`, for the application that serves this file;
 * `token` (a read token), `label`, `lang`, and `variant` ("compact", "big" or "row").
 *
 * Slots: `label`, and `after` below the bar.  Parts: head, glyph, label, value, bar, fill, mark, detail, text, next.
 * States, as in `:state(working)`: loading, queued, working, retrying, stalled, failed, cancelled, completed, offline, unknown, refused.
 * Colours and sizes: `--ds-*`, such as `--ds-working-fill` and `--ds-bar`.
 *
 * Transport: the elements of a page share one stream for each application; a hidden page has none and polls every 30
 * seconds.  A browser has six connections to a host over HTTP/1.1, for all its tabs, so at most four tabs have a stream,
 * and the others poll.  Over plain http, except on localhost, the number of streams has no limit.
 * The element shows a lost connection only if the next attempt fails as well.
 */
export class DramatiqStatus extends HTMLElement {
  /** The status as the server has sent it last, or null. */
  readonly snapshot: Snapshot | null;
  /** The state that the element shows at present. */
  readonly state: State | undefined;
  /** Texts of this element in place of those of `texts`. */
  texts: Partial<typeof texts>;
  addEventListener<K extends keyof DramatiqStatusEvents>(
    type: K,
    listener: (this: DramatiqStatus, event: DramatiqStatusEvents[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject, options?: boolean | AddEventListenerOptions): void;
}

export type State =
  | "loading" | "queued" | "working" | "retrying" | "stalled" | "failed" | "cancelled" | "completed" | "offline" | "unknown" | "refused";

/** Fields of a status; times are texts in ISO 8601, durations are seconds. */
export interface Snapshot {
  message_id: string;
  status: "queued" | "working" | "completed" | "failed";
  actor_name?: string;
  queue_name?: string;
  progress?: number;
  total?: number | null;
  percent: number | null;
  rate?: number | null;
  attempts?: number;
  exception?: { type: string; message?: string };
  finished: boolean;
  retrying: boolean;
  scheduled: boolean;
  stalled: boolean;
  duration: number | null;
  time_remaining: number | null;
  enqueued_at?: string;
  scheduled_at?: string;
  started_at?: string;
  finished_at?: string;
  updated_at?: string;
  heartbeat_at?: string;
  cancelled?: boolean;
  cancel_reason?: string;
  cancel_requested_at?: string;
  cancel_seen_at?: string;
  [field: string]: unknown;
}

export interface Detail {
  snapshot: Snapshot | null;
  state: State;
}

/** All events bubble and cross shadow boundaries. */
export interface DramatiqStatusEvents {
  /** There is a new snapshot. */
  status: CustomEvent<Detail>;
  /** The job has ended.  Either `completed` or `failed` is sent, exactly once, also on a page that was loaded after the end. */
  completed: CustomEvent<Detail>;
  failed: CustomEvent<Detail>;
  /** The state has become offline, refused or unknown, or is none of these any more. */
  connection: CustomEvent<Detail>;
}

/** Texts of all elements of a page: assign others to translate them; {0} and {1} are filled in. */
export const texts: Record<
  | "job" | "loading" | "queued" | "scheduled" | "working" | "retrying" | "stalled" | "failed" | "cancelled" | "completed" | "offline"
  | "unknown" | "refused" | "missing" | "noAccess" | "of" | "soFar" | "rate" | "left" | "lasts" | "took" | "waiting"
  | "starts" | "at" | "asOf" | "attempt" | "again" | "after" | "afterOne" | "silent" | "retry" | "skipped" | "never" | "stopped" | "asked"
  | "joint"
  | "d" | "h" | "min" | "s" | "under",
  string
>;

/**
 * Format a duration in seconds, with two units at most.  Seconds are shown only below 20 minutes.  `exact` adds tenths below 10 seconds.
 * `long` writes the units as words.
 */
export function duration(seconds: number, lang?: string, own?: typeof texts, exact?: boolean, long?: "long"): string;

/** A message that is watched. */
export interface Watched {
  id: string;
  snapshot?: Snapshot;
  /** Reason why the watch has ended. */
  end?: "final" | "unknown" | "refused";
}

/** Call `tell` with each change of a message.  The returned function ends the watch. */
export function watch(base: string, id: string, token: string | null | undefined, tell: (item: Watched) => void): () => void;

declare global {
  interface HTMLElementTagNameMap {
    "dramatiq-status": DramatiqStatus;
  }
}
