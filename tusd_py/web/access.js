// Requests to the server, with the visitor's token where the server needs one. The token stays in this
// tab: in memory and in sessionStorage, so that a reload does not ask for it again.

const KEY = "tusd_py.token"
/** What the server accepts behind "Bearer": letters, digits and a few signs. */
const TOKEN = /^[A-Za-z0-9_.=-]+$/

/** Return what the server says is wrong. */
export async function problemOf(response) {
  const problem = await response.json().catch(() => ({}))
  return problem.detail || `status ${response.status}`
}

/** Return what was kept; browsers that keep nothing throw. */
function kept() {
  try {
    return sessionStorage.getItem(KEY)
  } catch {
    return null
  }
}

function keep(token) {
  try {
    if (token) {
      sessionStorage.setItem(KEY, token)
    } else {
      sessionStorage.removeItem(KEY)
    }
  } catch {
    // The token is in memory all the same, and is asked for again after a reload.
  }
}

/** Knows the token, asks for it, and says when it was refused. */
export class Access {
  #form = document.getElementById("token-form")
  #field = document.getElementById("token")
  #problem = document.getElementById("token-problem")
  #known = document.getElementById("token-known")
  #token = null
  #needed
  #onChange

  /** `needed`: the server wants a token; `onChange` is called when there is another one, or none. */
  constructor({ needed, onChange }) {
    this.#needed = needed
    this.#onChange = onChange
    if (!needed) {
      return
    }
    this.#token = kept()
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault()
      this.#enter(this.#field.value)
    })
    document.getElementById("token-forget").addEventListener("click", () => {
      this.#set(null)
      this.#field.focus()
    })
    this.#show()
  }

  /** Whether requests can be made. */
  get ready() {
    return !this.#needed || this.#token !== null
  }

  /** The headers that a request to the server needs. */
  get headers() {
    return this.#token === null ? {} : { Authorization: `Bearer ${this.#token}` }
  }

  /** Fetch an address of the server. */
  async fetch(url, options) {
    const used = this.#token
    const response = await fetch(url, { ...options, headers: { ...options?.headers, ...this.headers } })
    if (response.status === 401 && used === this.#token) {
      this.refuse(await problemOf(response.clone()))
    }
    return response
  }

  /** Give up the token, which the server did not accept, and say so. */
  refuse(detail) {
    if (this.#needed && this.#token !== null) {
      this.#set(null, `The server refused the token: ${detail}`)
      this.#field.focus()
    }
  }

  #enter(text) {
    const token = text.trim().replace(/^bearer +/i, "")
    this.#field.value = ""
    if (TOKEN.test(token)) {
      this.#set(token)
    } else {
      this.#say("This is not a token: letters, digits and . _ = - are expected.")
    }
  }

  #set(token, problem = "") {
    this.#token = token
    keep(token)
    this.#say(problem)
    this.#show()
    this.#onChange()
  }

  #show() {
    this.#form.hidden = this.ready
    this.#known.hidden = !this.ready
  }

  #say(problem) {
    this.#problem.textContent = problem
    this.#field.setAttribute("aria-invalid", String(Boolean(problem)))
  }
}
