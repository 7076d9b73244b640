// Swagger UI of this endpoint's OpenAPI.

document.documentElement.classList.toggle("dark-mode", matchMedia("(prefers-color-scheme: dark)").matches);
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  defaultModelsExpandDepth: -1, // no list of all schemas below the routes
  validatorUrl: null, // the validator is a web site
});
