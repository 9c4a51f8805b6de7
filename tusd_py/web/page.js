// The upload page: Uppy above, the list of uploads below. Every address is relative to the page, so
// that it works below any prefix. What it must know stands in data attributes of the body.
import { Access } from "./access.js"
import { RecentUploads } from "./recent.js"
import { startUploader, underWay } from "./uploader.js"

const PATIENCE_MS = 20_000
const settings = document.body.dataset
const endpoint = new URL(settings.endpoint, document.baseURI).href
const notice = document.getElementById("notice")
const section = document.getElementById("uploader")
let uppy = null

/** Put an element into the head and wait until what it names is there. */
function load(tag, attributes) {
  const element = Object.assign(document.createElement(tag), attributes)
  return new Promise((resolve, reject) => {
    const { host } = new URL(element.src ?? element.href)
    const fail = () => reject(new Error(host))
    const patience = setTimeout(fail, PATIENCE_MS)
    element.onerror = fail
    element.onload = () => {
      clearTimeout(patience)
      resolve()
    }
    document.head.append(element)
  })
}

/** Load Uppy, from here or from a CDN; the digests make sure that it is what we know. */
async function loadUppy() {
  const crossOrigin = settings.scriptIntegrity ? "anonymous" : null
  const style = { rel: "stylesheet", href: settings.style, integrity: settings.styleIntegrity, crossOrigin }
  const script = { src: settings.script, integrity: settings.scriptIntegrity, crossOrigin }
  await Promise.all([load("link", style), load("script", script)])
  return window.Uppy
}

/** Say that there is no uploader, and what helps. */
function giveUp(error) {
  const lines = [
    `This page could not load its scripts from ${error.message}.`,
    "Check the network and reload; or, on the server, install npm, run scripts/frontend and start it again.",
    `Other tus clients can upload to ${endpoint} all the same.`,
  ]
  notice.className = "problem"
  notice.setAttribute("role", "alert")
  notice.replaceChildren(...lines.flatMap((line, index) => (index ? [document.createElement("br"), line] : [line])))
}

/** Return what this page is uploading. */
function sending() {
  return uppy ? underWay(uppy) : []
}

/** Offer the uploader where a file could be sent; files that are in it stay in sight. */
function offerUploader() {
  section.hidden = !access.ready && !uppy?.getFiles().length
}

document.getElementById("endpoint").textContent = endpoint
const access = new Access({
  needed: settings.token === "true",
  onChange: () => {
    offerUploader()
    recent.clear()
  },
})
const recent = new RecentUploads({ access, sending, cancel: (fileId) => uppy.removeFile(fileId) })
offerUploader()
recent.refresh()
addEventListener("beforeunload", (event) => {
  if (sending().length) {
    // The browser asks whether to leave, in words of its own.
    event.preventDefault()
  }
})

try {
  const library = await loadUppy()
  notice.remove()
  uppy = startUploader(library, {
    target: "#uploader",
    endpoint,
    maxSize: Number(settings.maxSize) || null,
    parallel: settings.parallel === "true",
    access,
    onChange: () => recent.refresh(),
    onProgress: () => recent.show(),
  })
} catch (error) {
  giveUp(error)
}
