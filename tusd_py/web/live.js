// The server's live events, read by fetch: EventSource sends no token. Where a proxy gathers responses, or the
// stream cannot be had for another reason, it is tried again ever less often.

const EVENTS_URL = "api/v1/events"
/** The first bytes come at once, unless somebody gathers them. */
const OPEN_MS = 5000
/** The server breaks its silence every 15 seconds. */
const SILENT_MS = 40_000
const AGAIN_MS = 2000
const LATEST_MS = 60_000

/** Return the fields of one event. */
function fieldsOf(block) {
  const lines = block.split("\n").map((line) => {
    const end = line.indexOf(": ")
    return end > 0 ? [line.slice(0, end), line.slice(end + 2)] : ["", line]
  })
  return Object.fromEntries(lines)
}

/** One stream of the events of all uploads that the visitor may see. */
export class LiveEvents {
  /** Whether events arrive. */
  open = false
  #access
  #on
  #reading = null
  #timer = null
  #delay = AGAIN_MS

  /** `on.open()`, `on.lost()`, and `on.event(name, upload)` with the upload as it was then. */
  constructor(access, on) {
    this.#access = access
    this.#on = on
  }

  /** Listen, unless that is under way. */
  start() {
    if (!this.#reading && this.#timer === null) {
      this.#run()
    }
  }

  /** Listen no more. */
  stop() {
    clearTimeout(this.#timer)
    this.#timer = null
    this.#delay = AGAIN_MS
    this.#reading?.abort()
    this.#reading = null
    this.open = false
  }

  async #run() {
    this.#timer = null
    const reading = new AbortController()
    this.#reading = reading
    try {
      await this.#read(reading)
    } catch {
      // Cut, or nothing came.
    }
    if (this.#reading !== reading) {
      return
    }
    const wasOpen = this.open
    this.#reading = null
    this.open = false
    this.#timer = setTimeout(() => this.#run(), this.#delay)
    this.#delay = Math.min(LATEST_MS, this.#delay * 2)
    if (wasOpen) {
      this.#on.lost()
    }
  }

  async #read(reading) {
    let patience = setTimeout(() => reading.abort(), OPEN_MS)
    try {
      const response = await this.#access.fetch(EVENTS_URL, { signal: reading.signal, cache: "no-store" })
      if (!response.ok) {
        return
      }
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
      let rest = ""
      for (;;) {
        const { done, value } = await reader.read()
        if (done || this.#reading !== reading) {
          return
        }
        clearTimeout(patience)
        patience = setTimeout(() => reading.abort(), SILENT_MS)
        if (!this.open) {
          this.open = true
          this.#delay = AGAIN_MS
          this.#on.open()
        }
        rest = this.#tell(rest + value)
      }
    } finally {
      clearTimeout(patience)
    }
  }

  /** Tell of each event in a text; return what is not yet a whole one. */
  #tell(text) {
    const blocks = text.split("\n\n")
    const rest = blocks.pop()
    for (const { event, data } of blocks.map(fieldsOf)) {
      if (event?.startsWith("upload.") && data) {
        this.#on.event(event, JSON.parse(data).data)
      }
    }
    return rest
  }
}
