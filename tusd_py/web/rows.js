// The rows of the list of uploads. What is the same as before is left alone, so that whoever is on a
// link or a button of a row stays there while its numbers move.

const UNITS = ["B", "KB", "MB", "GB", "TB", "PB"]
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" })
const RECEIVING = new Set(["created", "uploading", "paused"])

/** Return a number of bytes for people, as Uppy shows it just above: 1 KB is 1024 bytes. */
export function formatBytes(count) {
  if (count === null) {
    return "unknown"
  }
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log2(Math.max(count, 1)) / 10))
  const value = count / 2 ** (10 * power)
  const digits = Number.isInteger(value) ? 0 : power >= 3 ? 2 : value < 10 ? 1 : 0
  return `${value.toFixed(digits)} ${UNITS[power]}`
}

/** Return the name of an upload for people. */
export function nameOf(upload) {
  return upload.filename || upload.id
}

/** Whether an upload still misses bytes. */
export function isReceiving(upload) {
  return RECEIVING.has(upload.state)
}

/** Build an element with properties and children. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...children)
  return element
}

/** One row, for one upload. */
export class Row {
  element = make("tr", {})
  #shown = {}
  #actions
  #size
  #state
  #bar

  /** `actions.download` and `actions.remove` are called with the upload that the row shows. */
  constructor(actions) {
    this.#actions = actions
  }

  /** Show an upload; return whether anything is different from before. */
  update(upload) {
    const shown = this.#shown
    this.#shown = upload
    const same = ["id", "filename", "length", "state", "download_url", "created_at"].every(
      (name) => shown[name] === upload[name],
    )
    if (!same) {
      this.#build(upload)
    }
    if (!same || shown.offset !== upload.offset) {
      this.#move(upload)
      return true
    }
    return false
  }

  #build(upload) {
    const focused = this.element.contains(document.activeElement) ? document.activeElement.tagName : null
    this.#size = make("td", { className: "number" })
    this.#state = make("span", { className: "state" })
    this.#state.dataset.state = upload.state
    this.#bar = null
    const state = make("td", {}, this.#state)
    if (isReceiving(upload) && upload.length) {
      this.#bar = make("progress", { max: upload.length })
      this.#bar.setAttribute("aria-label", nameOf(upload))
      state.append(this.#bar)
    }
    const time = make("time", { dateTime: upload.created_at }, MOMENT.format(new Date(upload.created_at)))
    this.element.replaceChildren(
      make("th", { scope: "row" }, this.#name(upload)),
      this.#size,
      state,
      make("td", { className: "started" }, time),
      make("td", { className: "action" }, this.#button(upload)),
    )
    if (focused) {
      this.element.querySelector(focused)?.focus()
    }
  }

  /** The name, which leads to the bytes as soon as they can be had. */
  #name(upload) {
    if (!upload.download_url) {
      return nameOf(upload)
    }
    // Without `download` the browser would ask whether to leave a page that is uploading.
    const link = make("a", { href: `download/${upload.id}`, download: "" }, nameOf(upload))
    link.addEventListener("click", (event) => this.#actions.download(this.#shown, event))
    return link
  }

  #button(upload) {
    const word = isReceiving(upload) ? "Cancel" : "Delete"
    const button = make("button", { type: "button" }, word)
    button.setAttribute("aria-label", `${word} ${nameOf(upload)}`)
    button.addEventListener("click", () => this.#actions.remove(this.#shown))
    return button
  }

  /** Show how far the upload is. */
  #move(upload) {
    const length = formatBytes(upload.length)
    const moving = isReceiving(upload)
    this.#size.textContent = moving && upload.offset ? `${formatBytes(upload.offset)} of ${length}` : length
    this.#state.textContent = upload.state.replaceAll("_", " ")
    if (this.#bar) {
      const done = `${Math.floor((100 * upload.offset) / upload.length)} %`
      this.#state.append(` ${done}`)
      this.#bar.value = upload.offset
      this.#bar.textContent = done
    }
  }
}
