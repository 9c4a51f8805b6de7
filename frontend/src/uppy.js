// What the page needs of Uppy, under the names that Uppy's own prebuilt bundle uses: the page runs
// with either and cannot tell which one it got.
export { default as Uppy } from "@uppy/core"
export { default as Dashboard } from "@uppy/dashboard"
export { default as Tus } from "@uppy/tus"
