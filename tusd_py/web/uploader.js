// Uppy's Dashboard and its tus client, set up for the server that the page came from.

const LARGE_BYTES = 32 * 2 ** 20
/** A browser opens six connections to a host: two files in two parts each leave one for events and one for the rest. */
const PARTS = 2
const FILES = 2
const SHOW_MS = 250
/** The public id of the upload that each file has become, by the id of the file. */
const uploadIds = new Map()

/** Show the Dashboard. `onChange`: the server's list may be different; `onProgress`: bytes were sent. */
export function startUploader({ Uppy, Dashboard, Tus }, options) {
  const { target, endpoint, maxSize, parallel, access, onChange, onProgress } = options
  const uppy = new Uppy({ restrictions: { maxFileSize: maxSize } })
    .use(Dashboard, { inline: true, target, theme: "auto", width: "100%", height: 340 })
    .use(Tus, {
      endpoint,
      limit: FILES,
      retryDelays: [0, 1000, 3000, 5000, 10_000],
      // A file that was uploaded already may be uploaded again; only unfinished ones are resumed.
      removeFingerprintOnSuccess: true,
      // At every request, for the token may have been replaced since the upload began.
      onBeforeRequest: (request) => {
        for (const [name, value] of Object.entries(access.headers)) {
          request.setHeader(name, value)
        }
      },
    })
  uppy.on("file-added", (file) => prepare(uppy, file, parallel))
  if (parallel) {
    // Before the listeners of the uploads themselves, which forget what is to be ended.
    uppy.on("file-removed", (file) => endParts(uppy, file))
    uppy.on("cancel-all", () => uppy.getFiles().forEach((file) => endParts(uppy, file)))
  }
  uppy.on("upload-error", (_file, _error, response) => explain(uppy, access, response))
  for (const event of ["upload", "upload-success", "upload-error", "file-removed", "cancel-all", "complete"]) {
    uppy.on(event, () => onChange())
  }
  uppy.on("upload-progress", seldom(onProgress))
  for (const event of ["upload-pause", "pause-all", "resume-all"]) {
    uppy.on(event, () => onProgress())
  }
  return uppy
}

/** Return the files that are being sent, as the server would list them. */
export function underWay(uppy) {
  const { inProgressFiles } = uppy.getObjectOfFilesPerState()
  return inProgressFiles
    .filter((file) => !file.error)
    .map((file) => ({
      fileId: file.id,
      id: uploadIds.get(file.id) ?? file.id,
      filename: file.name,
      state: file.isPaused ? "paused" : "uploading",
      length: file.size,
      offset: file.progress.bytesUploaded || 0,
      download_url: null,
      created_at: new Date(file.progress.uploadStarted).toISOString(),
    }))
}

/** Learn which upload a file becomes; send a large one in parts, side by side, which the server joins. */
function prepare(uppy, file, parallel) {
  const split = parallel && file.size >= LARGE_BYTES
  const onAfterResponse = (request, response) => {
    const id = response.getHeader("Upload-Id")
    // The parts have ids too, which nobody lists.
    if (id && (!split || request.getHeader("Upload-Concat")?.startsWith("final"))) {
      uploadIds.set(file.id, id)
    }
  }
  uploadIds.delete(file.id)
  uppy.setFileState(file.id, { tus: { onAfterResponse, ...(split ? { parallelUploads: PARTS } : {}) } })
}

/** Uppy knows one URL per file and so leaves the parts of a cancelled one behind. */
function endParts(uppy, file) {
  const upload = uppy.getPlugin("Tus").uploaders[file.id]
  if (upload && !upload.url && file.tus?.parallelUploads) {
    upload.abort(true)
  }
}

/** Show what the server had to say; without it Uppy only tells that something went wrong. */
function explain(uppy, access, response) {
  const text = response?.body?.xhr?.responseText?.trim()
  if (text) {
    uppy.info(text, "error", 10_000)
  }
  if (response?.status === 401) {
    access.refuse(text || "status 401")
  }
}

/** Return a function that calls another one at most every so often, and once more at the end. */
function seldom(action) {
  let timer = null
  return () => {
    timer ??= setTimeout(() => {
      timer = null
      action()
    }, SHOW_MS)
  }
}
