import Uppy from "@uppy/core"
import Dashboard from "@uppy/dashboard"
import GoldenRetriever from "@uppy/golden-retriever"
import Tus from "@uppy/tus"
import "@uppy/core/css/style.min.css"
import "@uppy/dashboard/css/style.min.css"

// An application would write these down; here they come from the address of the page.
const options = new URLSearchParams(location.search)
const endpoint = options.get("endpoint") ?? "http://127.0.0.1:1080/files/"
const message = document.getElementById("message")
document.getElementById("endpoint").textContent = endpoint

new Uppy()
  .use(Dashboard, { inline: true, target: "#uppy", theme: "auto" })
  // Keeps the chosen files in the browser: after a reload or a crash they are there again.
  .use(GoldenRetriever)
  .use(Tus, {
    endpoint,
    // Waits between the tries of a request that failed. The URL of an unfinished upload is kept in
    // localStorage: after a reload, the same file goes on where it was interrupted.
    retryDelays: [0, 1000, 3000, 5000],
    // Once an upload is finished, the same file may be uploaded anew.
    removeFingerprintOnSuccess: true,
    // Parts of one file side by side, joined by the server.
    parallelUploads: Number(options.get("parallel") ?? 1),
    // Sends cookies; the server must then name this page's origin in cors.allow_origins.
    withCredentials: options.get("credentials") === "true",
  })
  .on("upload-error", (file, _error, response) => {
    // The server's own words, a line of text. A browser hands them out only with CORS headers.
    message.textContent = `${file.name}: ${response?.body?.xhr?.responseText || "no answer"}`
  })
  .on("upload", () => {
    message.textContent = ""
  })
  .on("complete", ({ successful, failed }) => {
    if (!failed.length) {
      message.textContent = `${successful.length} uploaded`
    }
  })
