// The list of recent uploads. It asks again for as long as something moves, ever less often while
// nothing changes, and not at all while nobody looks.

const LIST_URL = "api/v1/uploads?limit=20"
const SOONEST_MS = 1000
const LATEST_MS = 15_000
const SLOWER = 1.5
const MOVING = new Set(["created", "uploading", "completed", "transferring"])
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"]
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" })

/** Answer a number of bytes for people. */
export function formatBytes(count) {
  if (count === null) {
    return "unknown"
  }
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log2(Math.max(count, 1)) / 10))
  const value = count / 2 ** (10 * power)
  return `${value.toLocaleString(undefined, { maximumFractionDigits: power && value < 100 ? 1 : 0 })} ${UNITS[power]}`
}

/** Build an element with properties and children. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...children)
  return element
}

function nameOf(upload) {
  return upload.filename || upload.id
}

/** The name, which leads to the bytes as soon as they can be had. */
function nameCell(upload) {
  const name = nameOf(upload)
  return make("th", { scope: "row" }, upload.download_url ? make("a", { href: `download/${upload.id}` }, name) : name)
}

function stateCell(upload) {
  const badge = make("span", { className: "state" }, upload.state.replaceAll("_", " "))
  badge.dataset.state = upload.state
  const cell = make("td", {}, badge)
  if (upload.state === "uploading" && upload.length) {
    const done = `${Math.floor((100 * upload.offset) / upload.length)} %`
    badge.append(` ${done}`)
    const bar = make("progress", { max: upload.length, value: upload.offset }, done)
    bar.setAttribute("aria-label", nameOf(upload))
    cell.append(bar)
  }
  return cell
}

function timeCell(upload) {
  const text = MOMENT.format(new Date(upload.created_at))
  return make("td", {}, make("time", { dateTime: upload.created_at }, text))
}

/** Fill the row of an upload. */
function fill(row, upload) {
  const size = make("td", { className: "number" }, formatBytes(upload.length))
  row.replaceChildren(nameCell(upload), size, stateCell(upload), timeCell(upload))
}

/** Tell why the list is not there. */
async function problemOf(response) {
  const problem = await response.json().catch(() => ({}))
  return `The list could not be loaded: ${problem.detail || `status ${response.status}`}`
}

/** Keeps the table of the page up to date; `busy` tells whether this page is uploading. */
export class RecentUploads {
  #table = document.getElementById("recent")
  #note = document.getElementById("recent-note")
  #news = document.getElementById("news")
  #rows = new Map()
  #states = null
  #busy
  #delay = SOONEST_MS
  #timer
  #asking

  constructor({ busy }) {
    this.#busy = busy
    document.addEventListener("visibilitychange", () => this.refresh())
  }

  /** Ask now; an answer that is still under way is no longer wanted. */
  refresh() {
    this.#delay = SOONEST_MS
    this.#ask()
  }

  async #ask() {
    clearTimeout(this.#timer)
    this.#asking?.abort()
    if (document.hidden) {
      return
    }
    const asking = new AbortController()
    this.#asking = asking
    try {
      const again = await this.#load(asking.signal)
      this.#schedule(again)
    } catch {
      if (!asking.signal.aborted) {
        this.#say("The server does not answer; asking again …")
        this.#schedule(true)
      }
    }
  }

  /** Show what the server answers; tell whether to ask again. */
  async #load(signal) {
    const response = await fetch(LIST_URL, { signal, cache: "no-store" })
    if (!response.ok) {
      this.#say(await problemOf(response))
      return response.status >= 500
    }
    const { uploads } = await response.json()
    if (this.#show(uploads)) {
      this.#delay = SOONEST_MS
    }
    return this.#busy() || uploads.some((upload) => MOVING.has(upload.state))
  }

  #schedule(again) {
    if (again) {
      this.#timer = setTimeout(() => this.#ask(), this.#delay)
      this.#delay = Math.min(LATEST_MS, this.#delay * SLOWER)
    }
  }

  #say(text) {
    this.#note.textContent = text
    this.#note.hidden = !text
  }

  /** Bring the rows in line with the uploads, touching only what differs; tell whether anything did. */
  #show(uploads) {
    const known = this.#rows
    this.#rows = new Map()
    let changed = known.size !== uploads.length
    const rows = uploads.map((upload) => {
      const content = JSON.stringify(upload)
      const { row, seen } = known.get(upload.id) ?? { row: make("tr", {}) }
      if (seen !== content) {
        fill(row, upload)
        changed = true
      }
      this.#rows.set(upload.id, { row, seen: content })
      return row
    })
    if (changed) {
      this.#place(rows)
      this.#announce(uploads)
    }
    this.#table.hidden = !uploads.length
    this.#say(uploads.length ? "" : "Nothing here yet.")
    return changed
  }

  /** Put the rows in order; one that stays where it is keeps the focus. */
  #place(rows) {
    const body = this.#table.tBodies[0]
    const wanted = new Set(rows)
    for (const row of [...body.rows]) {
      if (!wanted.has(row)) {
        row.remove()
      }
    }
    rows.forEach((row, index) => {
      if (body.rows[index] !== row) {
        body.insertBefore(row, body.rows[index] ?? null)
      }
    })
  }

  /** Tell those who do not see the table what has been stored. */
  #announce(uploads) {
    const before = this.#states
    const stored = uploads.filter(({ id, state }) => state === "stored" && before?.get(id) !== "stored")
    if (before && stored.length) {
      this.#news.textContent = `Stored: ${stored.map(nameOf).join(", ")}`
    }
    this.#states = new Map(uploads.map(({ id, state }) => [id, state]))
  }
}
