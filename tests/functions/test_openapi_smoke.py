from tests.functions.api import JOBS
def test_it(api):
    i=api.submit({"prompt":"x","user_id":"me"})
    print(api.job(i)); print(api.get(JOBS).text[:300]); print(api.get("/tasks/"+i).text)
    print(api.get("/api/v1/models").text[:300])
    print(api.get("/tasks/123").text, api.request("PUT",JOBS).headers, api.get("/nothing/here").text)
    print(api.post(JOBS+i+"/cancel").text)
