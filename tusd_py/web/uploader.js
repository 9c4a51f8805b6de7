// Uppy's Dashboard and its tus client, set up for the server that the page came from.

const LARGE_BYTES = 32 * 2 ** 20
/** A browser opens six connections to a host: two files in two parts each leave two for everything else. */
const PARTS = 2
const FILES = 2

/** Show the Dashboard; `onChange` is called whenever the list of uploads may have changed. */
export function startUploader({ Uppy, Dashboard, Tus }, { target, endpoint, maxSize, parallel, onChange }) {
  const uppy = new Uppy({ restrictions: { maxFileSize: maxSize } })
    .use(Dashboard, { inline: true, target, theme: "auto", width: "100%", height: 340 })
    .use(Tus, {
      endpoint,
      limit: FILES,
      retryDelays: [0, 1000, 3000, 5000, 10_000],
      // A file that was uploaded already may be uploaded again; only unfinished ones are resumed.
      removeFingerprintOnSuccess: true,
    })
  if (parallel) {
    uppy.on("file-added", (file) => splitLarge(uppy, file))
    // Before the listeners of the uploads themselves, which forget what is to be ended.
    uppy.on("file-removed", (file) => endParts(uppy, file))
    uppy.on("cancel-all", () => uppy.getFiles().forEach((file) => endParts(uppy, file)))
  }
  uppy.on("upload-error", (_file, _error, response) => explain(uppy, response))
  for (const event of ["upload", "upload-success", "upload-error", "file-removed", "complete"]) {
    uppy.on(event, () => onChange())
  }
  return uppy
}

/** Send a large file in parts, side by side; the server joins them. */
function splitLarge(uppy, file) {
  if (file.size >= LARGE_BYTES) {
    uppy.setFileState(file.id, { tus: { parallelUploads: PARTS } })
  }
}

/** Uppy knows one URL per file and so leaves the parts of a cancelled one behind. */
function endParts(uppy, file) {
  const upload = uppy.getPlugin("Tus").uploaders[file.id]
  if (upload && !upload.url && file.tus?.parallelUploads) {
    upload.abort(true)
  }
}

/** Show what the server had to say; without it Uppy only tells that something went wrong. */
function explain(uppy, response) {
  const text = response?.body?.xhr?.responseText
  if (text) {
    uppy.info(text.trim(), "error", 10_000)
  }
}
