// The list of recent uploads: what the server says, and what this page is sending just now, byte by byte.
// The server tells of every change on one stream. Where there is none, it is asked again for as long as something
// moves, ever less often while nothing changes. While nobody looks there is neither.
import { problemOf } from "./access.js"
import { LiveEvents } from "./live.js"
import { isReceiving, nameOf, Row } from "./rows.js"

const API_URL = "api/v1/uploads"
const SOONEST_MS = 1000
const LATEST_MS = 15_000
/** The server makes known how far an upload is at least this often. */
const RECEIVING_MS = 5000
const SLOWER = 1.5
/** Processes that receive bytes hear a moment later that somebody listens: what they have told nobody is asked for. */
const HEARD_MS = 1000
const TOGETHER_MS = 200
const EMPTY = "Nothing here yet."
const MOVING = new Set(["created", "uploading", "completed", "transferring"])
const GONE = new Set(["expired", "removing", "removed"])

/** Lay what this page knows of an upload upon what the server says. */
function merged(upload, own) {
  if (!own || !isReceiving(upload)) {
    return upload
  }
  return { ...upload, fileId: own.fileId, state: own.state, offset: Math.max(upload.offset, own.offset) }
}

/** Return the later of what a list and an event say of an upload. */
function later(listed, heard) {
  return heard && Date.parse(heard.updated_at) >= Date.parse(listed.updated_at) ? heard : listed
}

/** Lay how far an upload is known to be upon what somebody says of it. */
function advanced(upload, offset = 0) {
  return isReceiving(upload) && offset > upload.offset ? { ...upload, state: "uploading", offset } : upload
}

/** Keeps the table of the page up to date. */
export class RecentUploads {
  #table = document.getElementById("recent")
  #title = document.getElementById("recent-title")
  #note = document.getElementById("recent-note")
  #problem = document.getElementById("recent-problem")
  #news = document.getElementById("news")
  #rows = new Map()
  #uploads = null
  #states = null
  #access
  #sending
  #cancel
  #delay = SOONEST_MS
  #timer
  #asking
  #live
  /** What events have said of uploads since the server was asked last. */
  #heard = new Map()

  /** `sending()` returns what this page is uploading; `cancel(fileId)` ends one of these. */
  constructor({ access, sending, cancel }) {
    this.#access = access
    this.#sending = sending
    this.#cancel = cancel
    this.#live = new LiveEvents(access, {
      open: () => {
        this.refresh()
        setTimeout(() => this.#live.open && this.refresh(), HEARD_MS)
      },
      lost: () => this.refresh(),
      event: (name, upload) => this.#hear(name, upload),
    })
    document.addEventListener("visibilitychange", () => this.refresh())
  }

  /** Ask now; an answer that is still under way is no longer wanted. */
  refresh() {
    this.#delay = SOONEST_MS
    this.#ask()
  }

  /** Forget everything: somebody else is looking. */
  clear() {
    this.#uploads = null
    this.#states = null
    this.#complain("")
    this.#live.stop()
    this.show()
    this.refresh()
  }

  /** Take what an event says of an upload. */
  #hear(name, upload) {
    const progress = name === "upload.progress"
    if (!progress) {
      this.#heard.set(upload.id, upload)
    }
    if (this.#uploads?.some(({ id }) => id === upload.id)) {
      const told = (listed) => (progress ? advanced(listed, upload.offset) : upload)
      this.#take(this.#uploads.map((listed) => (listed.id === upload.id ? told(listed) : listed)))
    } else if (!(progress || GONE.has(upload.state))) {
      // Perhaps a new one, perhaps a part that nobody lists: the server knows. One question will do for several.
      clearTimeout(this.#timer)
      this.#timer = setTimeout(() => this.refresh(), TOGETHER_MS)
    }
  }

  /** Return what the server lists, as far as events have not said otherwise since it was asked. */
  #corrected(listed) {
    const known = new Map((this.#uploads ?? []).map(({ id, offset }) => [id, offset]))
    return listed.map((upload) => advanced(later(upload, this.#heard.get(upload.id)), known.get(upload.id)))
  }

  /** Show what is known of the server's uploads; return whether anything is different. */
  #take(uploads) {
    this.#uploads = uploads.filter(({ state }) => !GONE.has(state))
    const changed = this.show()
    this.#say(this.#rows.size ? "" : EMPTY)
    this.#announce()
    return changed
  }

  async #ask() {
    clearTimeout(this.#timer)
    this.#asking?.abort()
    if (document.hidden || !this.#access.ready) {
      this.#live.stop()
    }
    if (document.hidden) {
      return
    }
    if (!this.#access.ready) {
      this.#say("With a token you see your uploads here.")
      return
    }
    this.#live.start()
    const asking = new AbortController()
    this.#asking = asking
    this.#heard.clear()
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

  /** Show what the server answers; return whether to ask again. */
  async #load(signal) {
    const response = await this.#access.fetch(`${API_URL}?limit=20`, { signal, cache: "no-store" })
    if (response.status === 401 && !this.#access.ready) {
      return false
    }
    if (!response.ok) {
      this.#say(`The list could not be loaded: ${await problemOf(response)}`)
      return response.status >= 500
    }
    const changed = this.#take(this.#corrected((await response.json()).uploads))
    if (this.#live.open) {
      return false
    }
    if (changed) {
      this.#delay = SOONEST_MS
    } else if (this.#uploads.some(isReceiving)) {
      this.#delay = Math.min(this.#delay, RECEIVING_MS)
    }
    return this.#sending().length > 0 || this.#uploads.some(({ state }) => MOVING.has(state))
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

  #complain(text) {
    this.#problem.textContent = text
    this.#problem.hidden = !text
  }

  /** Bring the rows in line with what is known, touching only what differs; return whether anything did. */
  show() {
    const uploads = this.#all()
    const known = this.#rows
    this.#rows = new Map()
    let changed = known.size !== uploads.length
    const elements = uploads.map((upload) => {
      const row = known.get(upload.id) ?? new Row({ download: this.#download, remove: this.#remove })
      changed = row.update(upload) || changed
      this.#rows.set(upload.id, row)
      return row.element
    })
    if (changed) {
      this.#place(elements)
    }
    this.#table.hidden = !uploads.length
    if (uploads.length && this.#note.textContent === EMPTY) {
      this.#say("")
    }
    return changed
  }

  /** What the server has told of, preceded by what it does not list yet. */
  #all() {
    const uploads = this.#uploads ?? []
    const sending = new Map(this.#sending().map((own) => [own.id, own]))
    const listed = uploads.map((upload) => merged(upload, sending.get(upload.id)))
    for (const { id } of uploads) {
      sending.delete(id)
    }
    return [...sending.values(), ...listed]
  }

  /** Put the rows in order; one that stays where it is keeps the focus. */
  #place(elements) {
    const body = this.#table.tBodies[0]
    const wanted = new Set(elements)
    for (const element of [...body.rows]) {
      if (!wanted.has(element)) {
        if (element.contains(document.activeElement)) {
          this.#title.focus()
        }
        element.remove()
      }
    }
    elements.forEach((element, index) => {
      if (body.rows[index] !== element) {
        body.insertBefore(element, body.rows[index] ?? null)
      }
    })
  }

  /** Tell those who do not see the table what has been stored. */
  #announce() {
    const before = this.#states
    const stored = this.#uploads.filter(({ id, state }) => state === "stored" && before?.get(id) !== "stored")
    if (before && stored.length) {
      this.#news.textContent = `Stored: ${stored.map(nameOf).join(", ")}`
    }
    this.#states = new Map(this.#uploads.map(({ id, state }) => [id, state]))
  }

  // --- what the buttons and links do ---

  #remove = async (upload) => {
    const name = nameOf(upload)
    const receiving = isReceiving(upload)
    const question = receiving
      ? `Cancel the upload of “${name}”? What has arrived of it is deleted.`
      : `Delete “${name}”? It cannot be brought back.`
    if (!confirm(question)) {
      return
    }
    this.#complain("")
    if (upload.fileId) {
      this.#cancel(upload.fileId)
      this.#news.textContent = `Cancelled: ${name}`
      return
    }
    await this.#attempt(async () => {
      const response = await this.#access.fetch(`${API_URL}/${upload.id}`, { method: "DELETE" })
      if (response.ok || response.status === 404) {
        this.#news.textContent = `${receiving ? "Cancelled" : "Deleted"}: ${name}`
      } else {
        this.#complain(`${name} was not deleted: ${await problemOf(response)}`)
      }
    })
    this.refresh()
  }

  /** A link sends no token, so that with one the page has to fetch the bytes. */
  #download = async (upload, event) => {
    if (!this.#access.headers.Authorization) {
      return
    }
    event.preventDefault()
    this.#complain("")
    await this.#attempt(async () => {
      const response = await this.#access.fetch(`download/${upload.id}?redirect=0`)
      if (response.ok) {
        await save(response, nameOf(upload))
      } else {
        this.#complain(`${nameOf(upload)} could not be downloaded: ${await problemOf(response)}`)
      }
    })
  }

  async #attempt(action) {
    try {
      await action()
    } catch {
      this.#complain("The server does not answer; try again.")
    }
  }
}

/** Save the bytes of an answer, or those at the URL of the store that it names, which needs no token. */
async function save(response, name) {
  const elsewhere = response.headers.get("Location")
  const url = elsewhere ?? URL.createObjectURL(await response.blob())
  const link = Object.assign(document.createElement("a"), { href: url, download: name })
  if (elsewhere) {
    Object.assign(link, { target: "_blank", rel: "noopener noreferrer" })
  }
  link.click()
  if (!elsewhere) {
    // The browser has begun to save by then; the bytes are held until the URL is given back.
    setTimeout(() => URL.revokeObjectURL(url), 60_000)
  }
}
